"""The fleet on scripted actors: faults cost a ticket another attempt, and who comes back has the learner's weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from actors.engine import EngineError
from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.codec import decode_group, encode_group
from envs.trajectory import Ticket
from orchestration.fleet import Fleet
from orchestration.held_out import sample
from orchestration.members import Phase
from orchestration.plans import Plan
from orchestration.start import RolloutError
from orchestration.tickets import held_out_tickets, training_ticket
from tests.builders import parallel_group
from tests.orchestration.fleet import KILLED, Ends, eventually, settle, through_ray
from tests.orchestration.fleet import Fleet as Scripted

pytestmark = pytest.mark.timeout(60)

BROKEN = through_ray(EngineError("the engine stopped: out of blocks"))


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


def configured(timeout_s: float = 60.0, sync_s: float = 60.0, **rollout: Any) -> RunConfig:
    settings = {"prompts_in_flight": 4, "max_restarts": 3, **rollout}
    return RunConfig.model_validate(
        {"rollout": settings, "queue": {"timeout_s": timeout_s}, "sync": {"timeout_s": sync_s}}
    )


@asynccontextmanager
async def up(scripted: Scripted, config: RunConfig | None = None) -> AsyncIterator[Fleet]:
    """All are up, as after the first weights."""
    fleet = scripted.up(configured() if config is None else config)
    try:
        yield fleet
    finally:
        await fleet.close()


def ticket(index: int) -> Ticket:
    return training_ticket(0, index, "frozen_lake")


def sampling(fleet: Fleet, *indices: int) -> list[asyncio.Task[Receipt]]:
    return [asyncio.create_task(fleet.sample(ticket(index))) for index in indices]


def phases(fleet: Fleet) -> list[Phase]:
    return [member.phase for member in fleet.members]


async def back(fleet: Fleet, number: int = 0, life: int = 2) -> None:
    await eventually(lambda: fleet.members[number].phase is Phase.UP and fleet.members[number].life >= life)


# --- tickets ---------------------------------------------------------------------------------------------------------


async def test_tickets_go_to_the_least_loaded_and_wait_where_there_is_no_room(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, configured(prompts_in_flight=2)) as fleet:
        assert fleet.room == 4
        calls = sampling(fleet, 0, 1, 2, 3, 4)
        await settle()
        assert [number for number, _ in scripted.asked] == [0, 1, 0, 1]
        await scripted.finish(3)
        assert [number for number, _ in scripted.asked[4:]] == [1]
        await scripted.finish(0, 1, 2, 4)
        assert [call.result().ticket.index for call in calls] == [0, 1, 2, 3, 4]
        assert [member.load for member in fleet.members] == [0, 0]


async def test_a_ticket_given_up_leaves_its_place_to_another(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(prompts_in_flight=1)) as fleet:
        first, second = sampling(fleet, 0, 1)
        await settle()
        first.cancel()
        await settle()
        assert scripted.in_flight == [1]
        await scripted.finish(1)
        assert second.result().state == "queued"


async def test_actors_are_told_in_which_era_they_sample(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted) as fleet:
        sampling(fleet, 0)
        await settle()
        fleet.era = 2
        sampling(fleet, 1)
        await settle()
        assert scripted.eras == [0, 2]


async def test_the_tickets_of_an_actor_that_dies_are_failed_attempts_and_count_once(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        calls = sampling(fleet, *range(6))
        await settle()
        scripted.handles[1].absent = True
        scripted.handles[1].die()
        await settle()
        lost = [call.result() for call in calls if call.done()]
        assert [(receipt.ticket.index, receipt.state) for receipt in lost] == [(i, "failed") for i in (1, 3, 5)]
        assert lost[0].cause == "rollout actor 1 failed at ticket 1: The actor died: out of memory"
        assert [line for line in scripted.said if "warning" in line] == [scripted.said[0]]
        assert scripted.said[0].startswith(f"warning: {lost[0].cause}; it is started again (")
        assert (phases(fleet)[1], fleet.members[1].failures, fleet.room) == (Phase.COMING, 1, 4)
        assert ends.processes == []  # Ray starts it again by itself
        assert scripted.in_flight == [0, 2, 4]  # the other goes on
        sampling(fleet, 6)
        await settle()
        assert scripted.asked[-1][0] == 0


async def test_an_actor_whose_engine_broke_is_ended_and_started_again(ends: Ends) -> None:
    """Its process lives on and answers, so Ray would leave it as it is."""
    scripted = Scripted()
    async with up(scripted) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        await scripted.fail(0, BROKEN)
        assert call.result().cause.endswith("EngineError: the engine stopped: out of blocks")
        await back(fleet)
        assert ends.processes == [0]
        assert scripted.handles[0].deaths == 1


async def test_an_actor_that_does_not_answer_in_time_is_ended_and_started_again(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(ticket_timeout_s=0.02, timeout_s=0.03)) as fleet:
        receipt = await fleet.sample(ticket(4))
        assert (receipt.state, receipt.cause) == ("failed", "rollout actor 0 did not answer for ticket 4 within 0.05 s")
        await back(fleet)
        assert ends.processes == [0]


async def test_an_actor_whose_connection_broke_but_not_its_process_is_let_in_again(ends: Ends) -> None:
    """Ray says that it is unavailable, as of one that died. Its tickets are tried again, its engine is as it was."""
    scripted = Scripted()
    async with up(scripted, configured(start_timeout_s=0.1)) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        await scripted.fail(0, ActorUnavailableError("keepalive watchdog timeout", None))
        assert call.result().state == "failed"
        await back(fleet)
        assert ends.processes == []
        assert scripted.learners.given[-1] == ([0], True)


async def test_who_comes_back_has_the_weights_and_gets_tickets_again(ends: Ends) -> None:
    scripted = Scripted()
    changes: list[int] = []
    async with up(scripted) as fleet:
        fleet.on_change = lambda: changes.append(fleet.room)
        scripted.learners.version = 7
        sampling(fleet, 0)
        await settle()
        scripted.handles[0].die()
        waiting = sampling(fleet, 1)[0]
        await back(fleet)
        await settle()
        assert (scripted.handles[0].version, scripted.learners.given) == (7, [([0], True)])
        assert changes[0] == 0
        assert changes[-1] == 4
        assert scripted.said[-1].startswith("rollout actor 0 samples again, 0 s after its fault (")
        await scripted.finish(1)
        assert waiting.result().state == "queued"
        assert fleet.members[0].failures == 0  # it has finished one


async def test_tickets_that_end_after_their_actor_is_back_leave_it_no_more_room_than_it_has(ends: Ends) -> None:
    """It was lost for another reason, and their calls end late."""
    scripted = Scripted()
    async with up(scripted, configured(prompts_in_flight=2)) as fleet:
        early = sampling(fleet, 0, 1)
        await settle()
        pending, scripted.handles[0]._pending = scripted.handles[0]._pending, []
        fleet.lost(0, BROKEN)
        await back(fleet)
        for future in pending:
            future.set_exception(KILLED)
        await settle()
        assert [call.result().state for call in early] == ["failed", "failed"]
        sampling(fleet, 2, 3, 4, 5)
        await settle()
        assert scripted.in_flight == [2, 3]
        assert phases(fleet) == [Phase.UP]


async def test_word_of_a_life_before_does_not_cost_the_one_that_waits_for_its_weights(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        pending, scripted.handles[0]._pending = scripted.handles[0]._pending, []
        async with fleet._weights:  # others get the weights meanwhile
            fleet.lost(0, BROKEN)
            await eventually(lambda: phases(fleet) == [Phase.READY])
            pending[0].set_exception(KILLED)
            await settle()
            assert call.result().state == "failed"
            assert phases(fleet) == [Phase.READY]
        await back(fleet)
        assert fleet.members[0].failures == 1
        assert ends.processes == [0]


# --- starting --------------------------------------------------------------------------------------------------------


async def test_a_run_begins_when_all_are_ready_and_samples_when_they_have_the_weights(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    fleet = scripted.down(configured())
    await fleet.start()
    assert (phases(fleet), fleet.room, list(await fleet.there())) == ([Phase.READY] * 2, 0, [0, 1])
    assert (await fleet.sync(anew=True)).total_s == 1.0
    assert (phases(fleet), fleet.room) == ([Phase.UP] * 2, 8)
    assert scripted.learners.given == [([0, 1], True)]
    assert scripted.said == []  # nobody comes back
    assert sorted(await fleet.clocks()) == [(0, 1), (1, 1)]


async def test_an_actor_that_is_late_or_broken_at_the_start_is_named(ends: Ends) -> None:
    late = Scripted(actors=3)
    late.handles[0].silent.add("ready")
    late.handles[2].silent.add("ready")
    with pytest.raises(RolloutError, match=r"^rollout actor 0, 2 was not up within 0.05 s \(rollout.start_timeout_s\)"):
        await late.down(configured(start_timeout_s=0.05)).start()
    broken = Scripted(actors=2)
    broken.handles[1].errors["ready"] = [through_ray(ValueError("no such architecture"))]
    with pytest.raises(RolloutError, match=r"^rollout actor 1 did not start: ValueError: no such arch"):
        await broken.down(configured()).start()


# --- signs of life ---------------------------------------------------------------------------------------------------


async def test_an_actor_that_gives_no_sign_of_life_is_ended_and_its_tickets_are_tried_elsewhere(ends: Ends) -> None:
    """Its engine may be stuck where no time limit of a ticket sees it, or the whole process."""
    scripted = Scripted(actors=2)
    async with up(scripted, configured(hang_timeout_s=0.05)) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        scripted.handles[0].silent.add("pulse")
        fleet.watch()
        receipt = await call
        assert receipt.cause == "rollout actor 0 failed at ticket 0: The actor died: out of memory"
        says = "warning: rollout actor 0 gave no sign of life for 0.075 s (1.5 x rollout.hang_timeout_s); it is started"
        assert scripted.said[0].startswith(says)
        assert ends.processes == [0]
        await back(fleet)
        assert fleet.members[1].failures == 0
        assert [line for line in scripted.said if "actor 1" in line] == []


async def test_an_actor_that_dies_without_work_is_noticed(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(hang_timeout_s=0.02)) as fleet:
        fleet.watch()
        scripted.handles[0].die()
        scripted.handles[0].errors["pulse"] = [KILLED]
        await eventually(lambda: scripted.said)
        assert scripted.said[0].startswith("warning: rollout actor 0: The actor died: out of memory; it is started")
        await back(fleet)
        assert ends.processes == []


async def test_an_actor_that_waits_for_its_weights_is_looked_after_as_well(ends: Ends) -> None:
    scripted = Scripted()
    fleet = scripted.down(configured(hang_timeout_s=0.02))
    await fleet.start()
    scripted.handles[0].silent.add("pulse")
    fleet.watch()
    await eventually(lambda: ends.processes == [0])
    await eventually(lambda: phases(fleet) == [Phase.READY])
    assert len(scripted.said) >= 1
    await fleet.close()


async def test_one_that_is_to_leave_and_hangs_does_not_keep_its_tickets(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, configured(hang_timeout_s=0.02)) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        fleet.dismiss([fleet.members[0]])
        scripted.handles[0].silent.add("pulse")
        fleet.watch()
        await eventually(lambda: phases(fleet) == [Phase.GONE, Phase.UP])
        assert ends.actors == [0]
        scripted.handles[0].die()  # as `end` has it
        assert (await call).actor_lost
        assert scripted.said[-1] == "rollout actor 0 has left (1 up)"


async def test_what_an_actor_worked_on_when_it_was_lost_is_not_waited_for_when_it_is_to_leave(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        calls = sampling(fleet, 0, 1, 2)
        await settle()
        scripted.handles[0].absent = True
        scripted.handles[0].die()
        await eventually(lambda: calls[0].done())
        assert (phases(fleet)[0], fleet.members[0].load) == (Phase.COMING, 0)
        fleet.dismiss([fleet.members[0]])
        await eventually(lambda: phases(fleet)[0] is Phase.GONE)
        await scripted.finish(1)
        assert [call.done() for call in calls] == [True] * 3


async def test_clocks_are_of_those_that_answer(ends: Ends) -> None:
    scripted = Scripted(actors=3)
    async with up(scripted, configured(sync_s=0.05)) as fleet:
        scripted.handles[1].silent.add("clock")
        scripted.handles[2].errors["clock"] = [BROKEN]
        assert {key: clock.sampled_tokens for key, clock in (await fleet.clocks()).items()} == {(0, 1): 100}
        assert "rollout actor 1 did not answer clock within 0.05 s (sync.timeout_s)" in str(scripted.said)
        assert "rollout actor 2 failed in clock: EngineError: the engine stopped: out of blocks" in str(scripted.said)
        await back(fleet, 1)
        await back(fleet, 2)
        assert [(number, life > 1) for number, life in await fleet.clocks()] == [(0, False), (1, True), (2, True)]


# --- evaluations -----------------------------------------------------------------------------------------------------


def answering(handle: Any, error: BaseException | None = None) -> list[int]:
    """Let it sample held-out episodes, or raise the error at its second call; the sizes of its calls."""
    calls: list[int] = []

    async def sample_held_out(tickets: Sequence[Ticket], samples: int, by: Any) -> list[bytes]:
        calls.append(len(tickets))
        await asyncio.sleep(0)
        if error is not None and len(calls) == 2:
            handle.absent = True
            handle.die()
            raise error
        return [encode_group(replace(parallel_group(1.0, 0.0), ticket=one)) for one in tickets]

    handle.sample_held_out = SimpleNamespace(remote=sample_held_out)
    return calls


async def test_the_episodes_of_an_actor_lost_at_an_evaluation_go_to_the_others(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    config = RunConfig.model_validate({"eval": {"episodes": 100, "samples": 2}})
    async with up(scripted, config) as fleet:
        answering(scripted.handles[0])
        calls = answering(scripted.handles[1], KILLED)
        payloads = await sample(config, fleet, Plan(2))
        assert [decode_group(data).ticket for data in payloads] == held_out_tickets(100, "frozen_lake")
        assert calls == [16, 16]
        assert "warning: rollout actor 1 failed at an evaluation: The actor died: out of memory" in scripted.said[0]
        assert phases(fleet) == [Phase.UP, Phase.COMING]


async def test_an_evaluation_before_the_first_weights_asks_those_that_are_ready(ends: Ends) -> None:
    """The only one dies at it: the evaluation waits for its next life, which nobody gives weights yet."""
    scripted = Scripted()
    config = RunConfig.model_validate({"eval": {"episodes": 40, "samples": 2}})
    fleet = scripted.down(config)
    await fleet.start()
    calls = answering(scripted.handles[0], KILLED)
    evaluating = asyncio.create_task(sample(config, fleet, Plan(2)))
    await eventually(lambda: phases(fleet) == [Phase.COMING])
    scripted.handles[0].absent = False
    assert len(await evaluating) == 40
    assert (calls, scripted.learners.given, phases(fleet)) == ([16, 16, 8, 16], [], [Phase.READY])
    await fleet.close()
