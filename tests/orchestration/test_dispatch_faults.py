"""Tickets while actors and the replay queue die: tried again, trained once, and never without an end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.codec import encode_group
from orchestration.driver import Driver
from orchestration.interrupt import Interrupt
from orchestration.replay_buffer import Taken
from orchestration.replay_queue import ReplayQueue
from tests.builders import parallel_group
from tests.orchestration.fleet import (
    BATCH,
    Ends,
    Fleet,
    configured,
    counts,
    dispatching,
    eventually,
    settle,
    taken,
    update,
)

# --- a dead actor ----------------------------------------------------------------------------------------------------


def reasons(path: Path) -> list[tuple[int, int, str, str]]:
    """(ticket, attempts, state, reason) of every ticket."""
    with closing(sqlite3.connect(path / "ledger.sqlite")) as ledger:
        return ledger.execute("SELECT ticket, attempts, state, reason FROM tickets ORDER BY ticket").fetchall()


def asked_for_ticket_0(fleet: Fleet, times: int) -> bool:
    return fleet.indices.count(0) == times


async def test_a_ticket_that_kills_every_actor_ends_as_failed_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ends(monkeypatch)
    fleet = Fleet(actors=3)
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        for attempt in range(3):
            await eventually(partial(asked_for_ticket_0, fleet, attempt + 1))
            victim = next(number for number, ticket in reversed(fleet.asked) if ticket.index == 0)
            fleet.handles[victim].die()
        await eventually(lambda: 2 in fleet.in_flight)
        last = f"rollout actor {victim} failed at ticket 0: The actor died: out of memory"
        assert reasons(tmp_path)[0] == (0, 3, "failed", last)
        await fleet.finish(1, 2)
        assert await dispatcher.batch_ready() == BATCH
        assert counts(dispatcher) == {"issued": 3, "failed": 1, "queued": 2}
        assert dispatcher.sampled.failed == 1


async def test_last_attempts_behind_a_death_are_made_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever of two killed the actor cannot take the other one with it for the last time."""
    Ends(monkeypatch)
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=2, start_timeout_s=5)) as dispatcher:
        assert fleet.in_flight == [0, 1]
        fleet.handles[0].die()
        await eventually(lambda: fleet.in_flight == [0])
        fleet.handles[0].die()
        await eventually(lambda: 1 in fleet.in_flight)
        assert reasons(tmp_path)[0][1:3] == (2, "failed")
        assert reasons(tmp_path)[1][1:3] == (2, "in_flight")
        await fleet.finish(1)
        assert dispatcher.sampled.failed == 1


async def test_a_group_whose_actor_died_before_it_said_so_is_trained_once(tmp_path: Path) -> None:
    """Ticket 0 is queued and its actor dead; it is tried again, and the queue gives the first attempt's group."""
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        fleet.handles[0].absent = True
        fleet.handles[0].die()
        await settle()
        assert [(t.index, t.attempt) for _, t in fleet.asked[4:]] == [(0, 1), (2, 1)]
        await fleet.finish(1)
        assert {0, 1, 2, 3} == dispatcher.wanted
        dispatcher.book_batch(taken(0, 1))
        dispatcher.book_trained(taken(0, 1))
        # The second attempt goes on, and may put its group into the queue before it says so.
        assert {2, 3} == dispatcher.wanted
        dispatcher.advance(1)
        await fleet.finish(0)
        assert {2, 3} <= dispatcher.wanted
        assert not {0, 1} & dispatcher.wanted
        assert counts(dispatcher)["trained"] == 2
        assert reasons(tmp_path)[0][:3] == (0, 2, "trained")


async def test_a_second_attempt_that_fails_leaves_the_first_ones_group_trained(tmp_path: Path) -> None:
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        fleet.handles[0].absent = True
        fleet.handles[0].die()
        await fleet.finish(1)
        dispatcher.book_batch(taken(0, 1))
        await fleet.finish(0, state="failed", cause="boom")
        assert fleet.indices.count(0) == 2
        dispatcher.book_trained(taken(0, 1))
        assert reasons(tmp_path)[0][:3] == (0, 2, "trained")
        assert counts(dispatcher) == {"issued": 4, "trained": 2, "in_flight": 2}


@pytest.mark.parametrize("state", ["filtered", "failed", "queued"])
async def test_a_second_attempt_that_ends_while_the_first_ones_group_is_taken(tmp_path: Path, state: str) -> None:
    """The queue has been asked for the group and its answer is on the way when the second attempt's receipt comes."""
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured(lag=1, max_attempts=2)) as dispatcher:
        fleet.handles[0].absent = True
        fleet.handles[0].die()
        await fleet.finish(1)
        async with dispatcher.taking:
            assert {0, 1} <= dispatcher.wanted
            await fleet.finish(0, state=state, cause="boom")
            dispatcher.book_batch(taken(0, 1))
        await settle()
        dispatcher.book_trained(taken(0, 1))
        assert reasons(tmp_path)[0][:3] == (0, 2, "trained")
        assert dispatcher.wanted == {2, 3}


async def test_the_queue_keeps_one_of_two_attempts_groups(tmp_path: Path) -> None:
    """The second attempt ends while the first one's group is still queued: its own is kept out."""
    fleet, replay = Fleet(actors=2), ReplayQueue(configured(lag=1).queue)
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        fleet.handles[0].absent = True
        first, second = (encode_group(parallel_group(reward, 0.0, index=0)) for reward in (1.0, 0.5))
        dispatcher.queue = await replay.put(first)
        fleet.handles[0].die()
        await settle()
        assert await replay.put(second) == dispatcher.queue
        await fleet.finish(0, queue=dispatcher.queue)
        there, payloads = await replay.take(BATCH, 0, dispatcher.wanted)
        assert (there.queue, payloads) == (dispatcher.queue, [first])
        dispatcher.book_batch(there)
        dispatcher.book_trained(there)
        assert reasons(tmp_path)[0][:3] == (0, 2, "trained")


# --- a dead queue ----------------------------------------------------------------------------------------------------


async def test_what_a_dead_queue_held_is_sampled_again(tmp_path: Path) -> None:
    """Of three queued tickets the new queue has one, put there a second time by an actor that never got its answer."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        dispatcher.queue = "old"
        await fleet.finish(0, 1, queue="old")
        await fleet.finish(2, queue="new")
        settled = dispatcher.state().settled
        dispatcher.book_lost("new", there=[2])
        await settle()
        assert dispatcher.queue == "new"
        assert [(t.index, t.attempt) for _, t in fleet.asked[4:]] == [(0, 1), (1, 1)]
        assert fleet.in_flight == [0, 1, 3]
        assert counts(dispatcher) == {"issued": 4, "queued": 1, "in_flight": 3}
        assert reasons(tmp_path)[0] == (0, 2, "in_flight", "its group was lost with the replay queue")
        await fleet.finish(0, 1, queue="new")
        assert dispatcher.state().settled == settled  # a ticket counts once against the refills
        assert await dispatcher.batch_ready() == BATCH
        await update(dispatcher, 0, 0, 1)
        assert counts(dispatcher)["trained"] == 2


async def test_a_receipt_of_a_dead_queue_is_another_attempt(tmp_path: Path) -> None:
    """However often: it is not the ticket's fault."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=2)) as dispatcher:
        dispatcher.queue = "first"
        for number, (dead, alive) in enumerate(pairwise(["first", "second", "third", "fourth"]), start=1):
            dispatcher.book_lost(alive, there=[])
            await fleet.finish(0, queue=dead)
            assert reasons(tmp_path)[0][1:3] == (number + 1, "in_flight")
        await fleet.finish(0, 1, queue="fourth")
        assert await dispatcher.batch_ready() == BATCH
        assert counts(dispatcher) == {"issued": 2, "queued": 2}


class Reborn:
    """A queue that died before the first batch was taken; two groups came to its successor until it was asked."""

    def __init__(self) -> None:
        self.taken = [taken(2, queue="new"), taken(0, 1, queue="new")]
        self.wanted: list[frozenset[int]] = []

    async def take(self, size: int, version: int, wanted: frozenset[int]) -> tuple[Taken, Any]:
        self.wanted.append(wanted)
        return self.taken.pop(0), "payloads"

    async def contents(self) -> tuple[str, list[int]]:
        return "new", [3]


async def test_the_loop_finds_out_that_the_queue_died_and_trains_on_what_there_is(tmp_path: Path) -> None:
    fleet = Fleet()
    said: list[str] = []
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        dispatcher.queue = "old"
        await fleet.finish(0, 1, queue="old")
        await fleet.finish(2, 3, queue="new")
        replay: Any = Reborn()
        recorder: Any = SimpleNamespace(warn=said.append)
        nobody: Any = None
        driver = Driver(
            configured(lag=1), nobody, dispatcher, replay, nobody, nobody, recorder, nobody, nobody, Interrupt(print)
        )
        batch, _ = await driver._next_batch(0)
        assert [header.index for header in batch.fresh] == [2]
        assert said == ["the replay queue died and was started again: the groups it held are sampled again"]
        assert replay.wanted == [frozenset({0, 1, 2, 3})]
        await settle()
        assert fleet.in_flight == [0, 1]
        assert counts(dispatcher) == {"issued": 4, "queued": 2, "in_flight": 2}
        dispatcher.book_trained(batch)
        await fleet.finish(0, 1, queue="new")
        batch, _ = await driver._next_batch(0)
        assert [header.index for header in batch.fresh] == [0, 1]
        assert len(said) == 1
        dispatcher.book_trained(batch)
