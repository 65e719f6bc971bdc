"""Tickets from issue to their end, with actors that answer when the test says so: bounds, retries, the ledger."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.codec import Header
from envs.trajectory import GroupStats, Ticket
from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.places import RolloutError
from orchestration.replay_queue import Taken
from orchestration.sampled import Sampled
from orchestration.tickets import training_ticket

BATCH = 2


class Fleet:
    """Actors that keep each ticket until `finish` or `fail` is called for it."""

    def __init__(self, actors: int = 1) -> None:
        self.handles: list[Any] = [_Handle(self, place) for place in range(actors)]
        self.asked: list[tuple[int, Ticket]] = []  # (place, ticket) of every call
        self._waiting: dict[int, tuple[Ticket, asyncio.Future[Receipt]]] = {}

    @property
    def in_flight(self) -> list[int]:
        return sorted(self._waiting)

    @property
    def indices(self) -> list[int]:
        return [ticket.index for _, ticket in self.asked]

    def ask(self, place: int, ticket: Ticket) -> asyncio.Future[Receipt]:
        self.asked.append((place, ticket))
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.index] = (ticket, future)
        return future

    async def finish(self, *indices: int, state: str = "queued", cause: str = "") -> None:
        """The receipts of these tickets arrive, one after another."""
        for index in indices:
            ticket, future = self._waiting.pop(index)
            stats = GroupStats(env_steps=3)
            future.set_result(Receipt(ticket, state, cause, state == "queued", 8, 2, 1, 4, 2, 2.5, 100, stats))
            await settle()

    async def fail(self, index: int, error: BaseException) -> None:
        self._waiting.pop(index)[1].set_exception(error)
        await settle()


class _Handle:
    """`handle.sample.remote(ticket)`, as Ray has it."""

    def __init__(self, fleet: Fleet, place: int) -> None:
        self._fleet, self._place, self.sample = fleet, place, self

    def remote(self, ticket: Ticket) -> asyncio.Future[Receipt]:
        return self._fleet.ask(self._place, ticket)


async def settle() -> None:
    """Give every task its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


def configured(lag: int = 0, updates: int = 10, **rollout: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"updates": updates, "seed": 3},
            "rollout": {"prompts_in_flight": 64, **rollout},
            "queue": {"max_policy_lag": lag, "max_groups": 8, "timeout_s": 5},
            "grpo": {"groups_per_update": BATCH, "max_refill": 2},
        }
    )


@asynccontextmanager
async def dispatching(path: Path, fleet: Fleet, config: RunConfig) -> AsyncIterator[Dispatcher]:
    """A dispatcher that has issued its first tickets; stopped at the end, when its ledger must balance."""
    with Ledger(path / "ledger.sqlite") as ledger:
        dispatcher = Dispatcher(config, fleet.handles, ledger)
        dispatcher.issue()
        await settle()
        yield dispatcher
        await dispatcher.stop()
        counts = ledger.counts()
        counts.check()
        assert (counts.queued, counts.in_flight) == (0, 0)


def counts(dispatcher: Dispatcher) -> dict[str, int]:
    """The states that hold any ticket."""
    return {state: number for state, number in asdict(dispatcher.ledger.counts()).items() if number}


def headers(indices: Sequence[int]) -> tuple[Header, ...]:
    return tuple(Header(i, 0, 0, 10, 8, 8, True) for i in indices)


def taken(*fresh: int, stale: Sequence[int] = ()) -> Taken:
    return Taken(headers(fresh), headers(stale))


async def update(dispatcher: Dispatcher, version: int, *fresh: int) -> None:
    """The learner's part: take a batch, train on it, and give the actors version + 1."""
    dispatcher.book_batch(taken(*fresh))
    dispatcher.book_trained(taken(*fresh))
    dispatcher.advance(version + 1)
    await settle()


# --- how much is sampled ahead ---------------------------------------------------------------------------------------


async def test_without_lag_each_version_gets_one_batch_of_tickets(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=0)) as dispatcher:
        for version in range(3):
            batch = [BATCH * version, BATCH * version + 1]
            assert fleet.in_flight == batch
            await fleet.finish(*batch)
            assert fleet.in_flight == []  # nothing is sampled under weights that are about to change
            assert await dispatcher.batch_ready() == BATCH
            await update(dispatcher, version, *batch)
        assert counts(dispatcher) == {"issued": 8, "trained": 6, "in_flight": 2}


async def test_with_a_lag_of_one_at_most_two_batches_are_ahead(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        assert fleet.in_flight == [0, 1, 2, 3]
        await fleet.finish(0, 1, 2)
        assert fleet.in_flight == [3]
        await update(dispatcher, 0, 0, 1)
        assert fleet.in_flight == [3, 4, 5]
        await fleet.finish(3, 4, 5)
        assert fleet.in_flight == []
        await update(dispatcher, 1, 2, 3)
        assert fleet.in_flight == [6, 7]


async def test_nothing_is_issued_beyond_the_last_update(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=5, updates=2)) as dispatcher:
        assert fleet.in_flight == [0, 1, 2, 3]
        await fleet.finish(0, 1)
        await update(dispatcher, 0, 0, 1)
        await fleet.finish(2, 3)
        await update(dispatcher, 1, 2, 3)
        assert counts(dispatcher) == {"issued": 4, "trained": 4}


async def test_no_more_tickets_run_than_the_actors_have_places(tmp_path: Path) -> None:
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured(lag=5, prompts_in_flight=2)):
        assert [(place, ticket.index) for place, ticket in fleet.asked] == [(0, 0), (1, 1), (0, 2), (1, 3)]
        await fleet.finish(1)
        assert [(place, ticket.index) for place, ticket in fleet.asked[4:]] == [(1, 4)]


async def test_each_ticket_goes_to_the_actor_with_the_fewest(tmp_path: Path) -> None:
    fleet = Fleet(actors=3)
    async with dispatching(tmp_path, fleet, configured(lag=3)):
        await fleet.finish(1, 4, state="filtered")
        assert [place for place, _ in fleet.asked] == [*(0, 1, 2, 0, 1, 2, 0, 1), *(1, 1)]


async def test_tickets_follow_from_the_runs_seed(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()):
        await fleet.finish(0, state="filtered")
        assert [ticket for _, ticket in fleet.asked] == [training_ticket(3, i, "frozen_lake") for i in range(3)]


# --- what becomes of a ticket ----------------------------------------------------------------------------------------


async def test_a_filtered_group_is_counted_and_replaced(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        await fleet.finish(0, state="filtered", cause="no signal")
        assert fleet.in_flight == [1, 2]
        await fleet.finish(2, 1)
        assert await dispatcher.batch_ready() == BATCH
        assert fleet.in_flight == []
        assert counts(dispatcher) == {"issued": 3, "filtered": 1, "queued": 2}


async def test_a_failed_ticket_is_tried_again_then_counted_and_replaced(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        for attempt in range(3):
            assert [t.attempt for _, t in fleet.asked if t.index == 0] == list(range(attempt + 1))
            assert fleet.in_flight == [0, 1]
            await fleet.finish(0, state="failed", cause="boom")
        assert fleet.in_flight == [1, 2]
        assert counts(dispatcher) == {"issued": 3, "failed": 1, "in_flight": 2}
        assert len({(t.env, t.seed) for _, t in fleet.asked if t.index == 0}) == 1
        with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
            rows = ledger.execute("SELECT attempts, reason FROM tickets ORDER BY ticket").fetchall()
        assert rows == [(3, "boom"), (1, ""), (1, "")]


async def test_a_retry_that_succeeds_ends_the_ticket_once(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        await fleet.finish(0, state="failed", cause="boom")
        await fleet.finish(0, 1)
        assert counts(dispatcher) == {"issued": 2, "queued": 2}
        assert dispatcher.sampled.groups == 2


async def test_with_one_attempt_nothing_is_tried_again(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=1)) as dispatcher:
        await fleet.finish(0, state="failed", cause="boom")
        assert fleet.indices == [0, 1, 2]
        assert counts(dispatcher) == {"issued": 3, "failed": 1, "in_flight": 2}


async def test_stale_groups_are_counted_and_make_place_for_others(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(0, 1, 2, 3)
        dispatcher.book_batch(taken(0, 1, stale=[2]))
        dispatcher.book_trained(taken(0, 1, stale=[2]))
        dispatcher.advance(1)
        await settle()
        assert counts(dispatcher) == {"issued": 7, "trained": 2, "stale": 1, "queued": 1, "in_flight": 3}
        assert fleet.in_flight == [4, 5, 6]


async def test_groups_are_replaced_when_all_that_was_queued_is_stale(tmp_path: Path) -> None:
    """There is no batch to train on and nothing in flight: only new tickets bring the next one."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        await fleet.finish(0, 1)
        dispatcher.book_batch(taken(stale=[0, 1]))
        await settle()
        assert fleet.in_flight == [2, 3]
        await fleet.finish(2, 3)
        assert await dispatcher.batch_ready() == BATCH


async def test_a_group_taken_before_its_receipt_came_is_booked_once(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(1, 2)
        assert await dispatcher.batch_ready() == BATCH
        dispatcher.book_batch(taken(0, 1))  # ticket 0 lay in the queue, its actor had not answered yet
        assert counts(dispatcher) == {"issued": 4, "queued": 3, "in_flight": 1}
        dispatcher.book_trained(taken(0, 1))
        await fleet.finish(0)
        assert counts(dispatcher) == {"issued": 4, "trained": 2, "queued": 1, "in_flight": 1}
        assert dispatcher.sampled.groups == 3
        dispatcher.advance(1)
        await settle()
        assert fleet.in_flight == [3, 4, 5]  # two batches ahead: these and ticket 2, which is queued
        await fleet.finish(3)
        assert await dispatcher.batch_ready() == BATCH


async def test_a_receipt_that_comes_while_the_learner_works_makes_no_place(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(1, 2)
        dispatcher.book_batch(taken(0, 1))
        await fleet.finish(0)
        assert fleet.in_flight == [3]
        dispatcher.book_trained(taken(0, 1))
        assert counts(dispatcher) == {"issued": 4, "trained": 2, "queued": 1, "in_flight": 1}


async def test_a_group_found_stale_before_its_receipt_came_is_booked_once(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(1, 2)
        dispatcher.book_batch(taken(1, 2, stale=[0]))
        await fleet.finish(0)
        assert counts(dispatcher)["stale"] == 1
        assert counts(dispatcher)["queued"] == 2
        assert await dispatcher.batch_ready() == BATCH


# --- when a batch is ready -------------------------------------------------------------------------------------------


async def test_a_batch_is_waited_for(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.finish(0)
        assert not ready.done()
        await fleet.finish(1)
        assert ready.result() == BATCH


async def test_a_batch_is_cut_short_after_its_refills(tmp_path: Path) -> None:
    """max_refill 2: after 2 * 2 groups of which one is of use, the update takes that one."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.finish(0)
        await fleet.finish(1, 2, state="filtered")
        assert not ready.done()
        await fleet.finish(3, state="filtered")
        assert ready.result() == 1
        await update(dispatcher, 0, 0)
        # It has used up its update's room, and the next one has all its refills again.
        assert fleet.in_flight == [4, 5]
        await fleet.finish(4)
        ready = asyncio.create_task(dispatcher.batch_ready())
        await settle()
        assert not ready.done()
        await fleet.finish(5)
        assert ready.result() == BATCH


@pytest.mark.parametrize("order", [(1, 2, 0, 3), (0, 1, 2, 3), (1, 0, 3, 2)])
async def test_without_lag_a_cut_batch_depends_on_no_timing(tmp_path: Path, order: Sequence[int]) -> None:
    """Four tickets, of which 2 is of use: whatever their order, no fifth is issued and all four are waited for."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        left = list(order)
        while left:
            index = next(i for i in left if i in fleet.in_flight)
            left.remove(index)
            assert not ready.done()
            await fleet.finish(index, state="queued" if index == 2 else "filtered")
        assert ready.result() == 1
        assert counts(dispatcher) == {"issued": 4, "filtered": 3, "queued": 1}


async def test_with_lag_a_batch_is_cut_while_others_still_run(tmp_path: Path) -> None:
    """(2 refills + a lag of 1) * 2 tickets are issued; after 2 * 2 of them the update takes what there is."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.finish(0)
        await fleet.finish(1, 2, state="filtered")
        assert not ready.done()
        await fleet.finish(3, state="filtered")
        assert ready.result() == 1
        assert fleet.in_flight == [4, 5]


async def test_a_round_of_refills_without_one_group_is_followed_by_another(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.finish(0, 1, 2, 3, state="filtered")
        assert fleet.in_flight == [4, 5]
        await fleet.finish(4)
        await fleet.finish(5, 6, state="filtered")
        assert not ready.done()
        await fleet.finish(7, state="filtered")
        assert ready.result() == 1


async def test_a_run_in_which_nothing_can_be_trained_gives_up(tmp_path: Path) -> None:
    """4 times max_refill 2 times a batch of 2: sixteen groups."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=1)) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.finish(*range(10), state="filtered", cause="no signal: all rewards are equal")
        await fleet.finish(*range(10, 15), state="failed", cause="boom")
        assert not ready.done()
        await fleet.finish(15, state="failed", cause="boom")
        with pytest.raises(RolloutError) as caught:
            await ready
        assert str(caught.value) == (
            "none of the last 16 groups can be trained on (10 without signal, 6 failed); last cause: boom"
        )


async def test_a_dead_actor_ends_the_wait_by_name(tmp_path: Path) -> None:
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        await fleet.fail(1, RayActorError(error_msg="The actor died: out of memory"))
        with pytest.raises(RolloutError, match="rollout actor 1 failed at ticket 1: The actor died: out of memory"):
            await ready
        assert fleet.in_flight == [0]  # and nothing new is issued


async def test_an_actor_that_does_not_answer_is_named(tmp_path: Path) -> None:
    config = configured(ticket_timeout_s=0.02)
    config = config.model_copy(update={"queue": config.queue.model_copy(update={"timeout_s": 0.03})})
    async with dispatching(tmp_path, Fleet(), config) as dispatcher:
        with pytest.raises(RolloutError, match=r"no ticket ended within 0.03 s \(queue.timeout_s\): 2 in flight on 1"):
            await dispatcher.batch_ready()
        await asyncio.sleep(0.05)
        with pytest.raises(RolloutError, match=r"rollout actor 0 did not answer for ticket [01] within 0\.05 s"):
            await dispatcher.batch_ready()


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_stopping_cancels_what_runs_and_what_is_queued(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(0, 1, 2)
        await update(dispatcher, 0, 0, 1)
        await dispatcher.stop()
        assert counts(dispatcher) == {"issued": 6, "trained": 2, "cancelled": 4}
        asked = len(fleet.asked)
        await dispatcher.stop()
        await settle()
        assert len(fleet.asked) == asked


async def test_stopping_with_a_batch_at_the_learner_cancels_it(tmp_path: Path) -> None:
    """The learner died on it, one of its groups had come before its receipt."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(1, 2)
        dispatcher.book_batch(taken(0, 1))
        await dispatcher.stop()
        assert counts(dispatcher) == {"issued": 4, "cancelled": 4}


async def test_stopping_after_a_batch_that_came_before_its_receipt_leaves_it_trained(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(1, 2)
        dispatcher.book_batch(taken(0, 1))
        dispatcher.book_trained(taken(0, 1))
        await dispatcher.stop()
        assert counts(dispatcher) == {"issued": 4, "trained": 2, "cancelled": 2}


async def test_stopping_after_an_actors_death_leaves_no_ticket_open(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        await fleet.fail(0, RayActorError())
        await dispatcher.stop()
        assert counts(dispatcher) == {"issued": 2, "cancelled": 2}


# --- figures ---------------------------------------------------------------------------------------------------------


async def test_sums_over_receipts_start_anew_when_they_are_taken(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(lag=1)) as dispatcher:
        await fleet.finish(0)
        await fleet.finish(1, state="filtered")
        assert dispatcher.take_sampled() == Sampled(
            groups=2,
            without_signal=1,
            solutions=16,
            solved=4,
            failed_episodes=2,
            distinct_answers=8,
            distinct_solutions=4,
            reward_sum=5.0,
            stats=GroupStats(env_steps=6),
        )
        await fleet.finish(2)
        assert dispatcher.take_sampled().groups == 1


# --- going on from a checkpoint --------------------------------------------------------------------------------------


async def test_a_restored_dispatcher_goes_on_where_the_other_was(tmp_path: Path) -> None:
    """Ticket 0 is queued, 1 in flight for the second time, 2 filtered, 3 in flight: 1 and 3 are issued again."""
    first = Fleet()
    config = configured(lag=1, max_attempts=3)
    async with dispatching(tmp_path, first, config) as dispatcher:
        await first.finish(0)
        await first.finish(1, state="failed", cause="boom")
        await first.finish(2, state="filtered")
        dispatcher.ledger.backup(tmp_path / "copy.sqlite")
        state = dispatcher.state()
        await first.finish(3)  # what comes later is not known to the checkpoint
        before = [ticket for _, ticket in first.asked]
    assert (state.next_index, state.settled, state.rounds) == (5, 2, 1)
    assert (state.sampled.groups, state.sampled.without_signal) == (2, 1)

    second = Fleet(actors=2)
    with Ledger(tmp_path / "copy.sqlite") as ledger:
        again = Dispatcher(config, second.handles, ledger)
        again.restore(0, state)
        again.issue()
        await settle()
        assert second.in_flight == [1, 3, 4]
        assert [ticket.attempt for _, ticket in second.asked] == [1, 0, 0]
        assert all(ticket in before for _, ticket in second.asked)
        assert counts(again) == {"issued": 5, "queued": 1, "filtered": 1, "in_flight": 3}
        await second.finish(1)
        assert await again.batch_ready() == BATCH
        await update(again, 0, 0, 1)
        assert second.in_flight == [3, 4, 5, 6]
        assert again.sampled.groups == 3
        await again.stop()


async def test_a_restored_dispatcher_counts_what_was_trained(tmp_path: Path) -> None:
    """At version 3 without lag there is room for one batch, tickets 6 and 7, and for no more."""
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        for version in range(3):
            await fleet.finish(2 * version, 2 * version + 1)
            await update(dispatcher, version, 2 * version, 2 * version + 1)
        dispatcher.ledger.backup(tmp_path / "copy.sqlite")
        state = dispatcher.state()
    again_fleet = Fleet()
    with Ledger(tmp_path / "copy.sqlite") as ledger:
        again = Dispatcher(configured(), again_fleet.handles, ledger)
        again.restore(3, state)
        again.issue()
        await settle()
        assert (again.version, again_fleet.in_flight) == (3, [6, 7])
        await again.stop()
