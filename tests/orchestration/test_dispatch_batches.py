"""When the dispatcher says that a batch is ready, and how it goes on from a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.start import RolloutError
from tests.orchestration.fleet import (
    BATCH,
    KILLED,
    Ends,
    Fleet,
    configured,
    counts,
    dispatching,
    eventually,
    settle,
    update,
)

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


async def test_a_dead_actor_is_named_and_its_tickets_are_tried_again_on_another(tmp_path: Path) -> None:
    fleet = Fleet(actors=2)
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        ready = asyncio.create_task(dispatcher.batch_ready())
        fleet.handles[1].absent = True
        fleet.handles[1].die()
        await settle()
        [said] = fleet.said
        assert said.startswith(
            "warning: rollout actor 1 failed at ticket 1: The actor died: out of memory; it is started again ("
        )
        assert [(number, ticket.index, ticket.attempt) for number, ticket in fleet.asked] == [
            (0, 0, 0), (1, 1, 0), (0, 1, 1),
        ]  # fmt: skip
        assert len({(ticket.env, ticket.seed) for _, ticket in fleet.asked if ticket.index == 1}) == 1
        assert not ready.done()
        await fleet.finish(0, 1)
        assert ready.result() == BATCH
        assert counts(dispatcher) == {"issued": 2, "queued": 2}


async def test_an_actor_that_does_not_answer_is_named_and_its_ticket_tried_again_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, fleet = Ends(monkeypatch), Fleet(actors=2)
    config = configured(ticket_timeout_s=0.5)
    config = config.model_copy(update={"queue": config.queue.model_copy(update={"timeout_s": 0.03})})
    async with dispatching(tmp_path, fleet, config) as dispatcher:
        nothing_ended = (
            r"no ticket ended within 0.03 s \(queue.timeout_s\): 2 in flight, rollout actors: 2 up, 0 groups"
        )
        with pytest.raises(RolloutError, match=nothing_ended):
            await dispatcher.batch_ready()
        await fleet.finish(1)
        await eventually(lambda: len(fleet.asked) == 3)
        assert "rollout actor 0 did not answer for ticket 0 within 0.53 s; it is started again" in fleet.said[0]
        assert (fleet.asked[2][0], fleet.asked[2][1].index, fleet.asked[2][1].attempt) == (1, 0, 1)
        await fleet.finish(0)
        assert await dispatcher.batch_ready() == BATCH
        await eventually(lambda: ends.processes == [0])


async def test_where_no_actor_is_up_when_tickets_are_due_they_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only actor dies between the weights and the next tickets: nobody can be given any until it is back."""
    Ends(monkeypatch)
    fleet = Fleet()
    async with dispatching(tmp_path, fleet, configured()) as dispatcher:
        await fleet.finish(0, 1)
        fleet.handles[0].absent = True
        fleet.handles[0].die()
        dispatcher._fleet.lost(0, KILLED)
        await update(dispatcher, 0, 0, 1)
        assert fleet.in_flight == []
        ready = asyncio.create_task(dispatcher.batch_ready())
        await settle()
        assert not ready.done()
        fleet.handles[0].absent = False
        await eventually(lambda: fleet.in_flight == [2, 3])
        await fleet.finish(2, 3)
        assert await ready == BATCH


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
        again = Dispatcher(config, second.up(config), ledger)
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
        again = Dispatcher(configured(), again_fleet.up(configured()), ledger)
        again.restore(3, state)
        again.issue()
        await settle()
        assert (again.version, again_fleet.in_flight) == (3, [6, 7])
        await again.stop()
