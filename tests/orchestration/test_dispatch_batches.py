"""When the dispatcher says that a batch is ready, and how it goes on from a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.places import RolloutError
from tests.orchestration.fleet import BATCH, Fleet, configured, counts, dispatching, settle, update

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
