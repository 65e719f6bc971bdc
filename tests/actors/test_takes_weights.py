"""How an actor comes to weights, whole or in parts, and sleeps meanwhile: what its engine is asked, and who waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.engine import EngineError
from actors.held_time import HeldTime
from actors.received import Received
from actors.rollout_actor import RolloutActor

pytestmark = pytest.mark.timeout(30)

PAUSED = ["pause", "wake"]


class Engine:
    """Keeps what it is asked to do. broken: worker calls that raise."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.broken: set[str] = set()
        self.version = 3

    async def pause(self) -> None:
        self.did.append("pause")

    async def sleep(self) -> None:
        self.did.append("sleep")

    async def wake(self) -> None:
        self.did.append("wake")

    async def resume(self, version: str) -> None:
        self.did.append("resume")
        self.version = int(version)

    async def worker_call(self, method: str, **arguments: Any) -> Any:
        if method in self.broken:
            raise RuntimeError("Connection reset by peer")
        self.did.append((method, arguments))
        return Received(0.5, 0.25, 0.125, 7) if method == "take_weights" else None


def with_engine() -> tuple[RolloutActor, Engine]:
    actor, engine = object.__new__(RolloutActor), Engine()
    its: Any = actor
    its._engine, its._held_time = engine, HeldTime()
    return actor, engine


def is_held(actor: RolloutActor) -> bool:
    return actor._held_time._since is not None


async def test_an_actor_tells_the_version_it_holds() -> None:
    actor, engine = with_engine()
    assert await actor.policy_version() == 3
    received = await actor.update_weights({"names": []}, 7)
    assert await actor.policy_version() == 7
    assert engine.did == [*PAUSED, ("take_weights", {"update_info": {"names": []}}), "resume"]
    assert received.checksum == 7
    assert received.pause_s >= 0.5


async def test_weights_that_do_not_come_leave_the_version_as_it_was() -> None:
    actor, engine = with_engine()
    engine.broken = {"take_weights"}
    with pytest.raises(RuntimeError, match="Connection reset"):
        await actor.update_weights({}, 7)
    assert (await actor.policy_version(), engine.did) == (3, PAUSED)


async def test_an_actor_leaves_its_weight_group_before_it_joins_another() -> None:
    actor, engine = with_engine()
    await actor.init_weight_transfer_engine({"rank_offset": 1})
    assert engine.did == [
        "wake",
        ("leave_weight_group", {}),
        ("init_weight_transfer_engine", {"init_info": {"rank_offset": 1}}),
    ]
    await actor.pulse()


async def test_weights_in_parts_are_one_update() -> None:
    actor, engine = with_engine()
    times = [await actor.begin_weights(), await actor.take_part({"part": 1}), await actor.take_part({"part": 2})]
    assert (await actor.policy_version(), is_held(actor)) == (3, True)
    times.append(await actor.end_weights(7))
    assert (await actor.policy_version(), is_held(actor)) == (7, False)
    parts = [("take_part", {"update_info": {"part": i}}) for i in (1, 2)]
    assert engine.did == [
        *PAUSED, ("begin_weights", {}), *parts, ("finish_weight_update", {}), "resume",
    ]  # fmt: skip
    assert all(isinstance(time, float) and time >= 0 for time in times)


async def test_a_ticket_does_not_grow_older_while_its_actor_sleeps() -> None:
    """Neither until weights come, whole or in parts, nor until it is woken."""

    async def whole(actor: RolloutActor) -> None:
        await actor.update_weights({}, 4)

    async def in_parts(actor: RolloutActor) -> None:
        await actor.begin_weights()
        await actor.end_weights(4)

    async def woken(actor: RolloutActor) -> None:
        await actor.wake()

    for end in (whole, in_parts, woken):
        actor, _ = with_engine()
        go_on = asyncio.Event()
        ticket = asyncio.create_task(actor._held_time.within(0.2, go_on.wait()))
        await asyncio.sleep(0)
        await actor.sleep()
        await asyncio.sleep(0.4)
        assert not ticket.done()
        await end(actor)
        assert not is_held(actor)
        go_on.set()
        assert await ticket


async def test_who_is_woken_goes_on_with_the_weights_it_has() -> None:
    actor, engine = with_engine()
    await actor.sleep()
    await actor.wake()
    assert (engine.did, engine.version) == (["sleep", "wake", "resume"], 3)


async def test_an_engine_that_cannot_wake_is_the_actors_end() -> None:
    async def wake() -> None:
        raise EngineError("the engine stopped: out of memory")

    actor, engine = with_engine()
    engine.wake = wake  # type: ignore[method-assign]
    await actor.sleep()
    with pytest.raises(EngineError, match="out of memory"):
        await actor.begin_weights()
