"""Tickets from issue to their end, with actors that answer when the test says so: bounds, retries, the ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ray.exceptions import RayActorError

from envs.trajectory import GroupStats
from orchestration.sampled import Sampled
from orchestration.tickets import training_ticket
from tests.orchestration.fleet import BATCH, Fleet, configured, counts, dispatching, settle, taken, update

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


async def test_an_attempt_that_failed_nobody_knows_why_is_tried_again_too(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        await fleet.finish(0, state="failed")
        assert fleet.in_flight == [0, 1]
        await fleet.finish(0, 1)
        assert counts(dispatcher) == {"issued": 2, "queued": 2}


async def test_a_retry_that_succeeds_ends_the_ticket_once(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        await fleet.finish(0, state="failed", cause="boom")
        await fleet.finish(0, 1)
        assert counts(dispatcher) == {"issued": 2, "queued": 2}
        assert dispatcher.sampled.groups == 2


async def test_attempts_that_are_made_again_cost_what_they_cost(tmp_path: Path) -> None:
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured(max_attempts=3)) as dispatcher:
        await fleet.finish(0, state="failed", cause="the environment hung")
        await fleet.finish(0)
        sampled = dispatcher.take_sampled()
        assert (sampled.groups, sampled.failed, sampled.solutions) == (1, 0, 8)
        assert (sampled.sampled_tokens, sampled.stats.env_steps, sampled.replaced_workers) == (200, 6, 2)


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
            sampled_tokens=200,
            replaced_workers=2,
            stats=GroupStats(env_steps=6),
        )
        await fleet.finish(2)
        assert dispatcher.take_sampled().groups == 1
