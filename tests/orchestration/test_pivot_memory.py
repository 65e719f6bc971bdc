"""What the driver learns of pivots: which count, when it fits, who is told, and that a checkpoint keeps all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.receipt import Receipt
from actors.rollout_actor import RolloutActor
from actors.samplers.build import build_sampler
from actors.samplers.recoverability import Recoverability, fit
from configs.samplers import DdeSettings, ParallelSettings, SamplerSettings
from configs.schema import RunConfig
from envs.trajectory import PivotTrial, Ticket
from orchestration.checkpoints import CheckpointError, read_pivots
from orchestration.pivot_memory import PivotMemory, PivotState
from orchestration.resume import resume_point
from tests.orchestration.fleet import Ends, Fleet, configured, dispatching, eventually, settle, update
from tests.orchestration.small_run import Run

Told = list[tuple[str, Recoverability]]


def config_of(**sampler: Any) -> RunConfig:
    return RunConfig.model_validate({"sampler": {"name": "dde", "min_labels": 4, **sampler}})


def memory(**sampler: Any) -> tuple[PivotMemory, Told]:
    """A memory, and what the actors were told."""
    told: Told = []

    async def tell(method: str, model: Recoverability) -> None:
        told.append((method, model))

    return PivotMemory(config_of(**sampler), tell), told


def receipt(index: int, *trials: tuple[float, int], state: str = "queued", branches: int = 8) -> Receipt:
    """trials: (depth, branches that solved it)."""
    pivots = tuple(PivotTrial(0, 1, depth, (depth,), branches, solved, 0.0) for depth, solved in trials)
    return Receipt(Ticket(index, "scripted", 0), state, pivots=pivots)


MIXED = ((0.1, 3), (0.3, 0), (0.5, 1), (0.9, 0))
FIT = fit([(0.1,), (0.3,), (0.5,), (0.9,)], [True, False, True, False])


# --- when it fits ----------------------------------------------------------------------------------------------------


async def test_the_actors_are_told_of_every_fit() -> None:
    pivots, told = memory()
    pivots.add(receipt(0, *MIXED))
    assert told == []  # nothing before the update ends
    await pivots.advance(1)
    assert told == [("use_recoverability", FIT)]
    assert FIT.weights[0] < 0


async def test_a_fit_that_changes_nothing_is_not_told() -> None:
    pivots, told = memory()
    pivots.add(receipt(0, *MIXED))
    for version in (1, 2, 3):
        await pivots.advance(version)
    assert len(told) == 1


async def test_too_few_labels_or_one_kind_of_them_are_no_fit() -> None:
    pivots, told = memory()
    pivots.add(receipt(0, *MIXED[:3]))
    await pivots.advance(1)
    assert told == []
    alike, told_alike = memory()
    alike.add(receipt(0, *[(0.1 * i, 1) for i in range(8)]))
    await alike.advance(1)
    assert told_alike == []
    alike.add(receipt(1, (0.9, 0)))
    await alike.advance(2)
    assert len(told_alike) == 1


async def test_fits_come_every_so_many_updates() -> None:
    pivots, told = memory(refit_every=3)
    for version in range(1, 8):
        pivots.add(receipt(version, *MIXED, (0.1 * version, 1)))
        await pivots.advance(version)
        assert len(told) == version // 3


async def test_the_newest_pivots_count() -> None:
    pivots, told = memory(window=4)
    pivots.add(receipt(0, (0.2, 1), (0.4, 0), (0.6, 1), (0.8, 0)))
    await pivots.advance(1)
    pivots.add(receipt(1, (0.7, 1), (0.9, 1)))
    await pivots.advance(2)
    assert told[-1][1] == fit([(0.6,), (0.8,), (0.7,), (0.9,)], [True, False, True, True])


# --- which count -----------------------------------------------------------------------------------------------------


async def test_pivots_count_in_the_order_of_their_tickets() -> None:
    """Receipts come in any order; the window, and so the last bits of a fit, do not depend on it."""
    states = []
    for order in ((0, 1, 2), (2, 0, 1)):
        pivots, _ = memory(window=5)
        for index in order:
            pivots.add(receipt(index, (0.1 + index / 10, index % 2), (0.5 + index / 10, 0)))
        await pivots.advance(1)
        states.append(pivots.state())
    assert states[0] == states[1]
    assert states[0] is not None
    assert [o.ticket for o in states[0].window] == [0, 1, 1, 2, 2]


async def test_groups_without_signal_count_and_failed_tickets_do_not() -> None:
    pivots, told = memory()
    pivots.add(receipt(0, *MIXED, state="filtered"))
    pivots.add(Receipt(Ticket(1, "scripted", 0), "failed", "boom"))
    await pivots.advance(1)
    assert told == [("use_recoverability", FIT)]


async def test_a_pivot_whose_branches_all_failed_says_nothing() -> None:
    pivots, told = memory()
    pivots.add(receipt(0, *[(0.5, 0)] * 9, branches=0))
    pivots.add(receipt(1, *MIXED))
    await pivots.advance(1)
    assert told == [("use_recoverability", FIT)]


@pytest.mark.parametrize("sampler", [{"name": "parallel"}, {"name": "dde", "rule": "random"}, {"name": "sesa"}])
async def test_other_samplers_and_rules_learn_nothing(sampler: dict[str, Any]) -> None:
    async def tell(method: str, *arguments: Any) -> None:
        raise AssertionError("nobody is to be told anything")

    pivots = PivotMemory(RunConfig.model_validate({"sampler": sampler}), tell)
    pivots.add(receipt(0, *MIXED * 5))
    await pivots.advance(1)
    assert pivots.state() is None
    await pivots.restore(None)


# --- in a run --------------------------------------------------------------------------------------------------------


class Learning(Fleet):
    """Actors whose receipts tell of pivots, and who can be told."""

    async def finish_with(self, index: int, *trials: tuple[float, int], state: str = "queued") -> None:
        ticket, future = self._waiting.pop(index)
        future.set_result(replace(receipt(index, *trials, state=state), ticket=ticket))
        await settle()


async def test_the_receipts_of_a_run_are_what_is_learned_from(tmp_path: Path) -> None:
    """A ticket that is tried again counts once, by its last attempt; what ends later is for the next fit."""
    fleet = Learning()
    config = configured(lag=0).model_copy(update={"sampler": config_of(min_labels=2, window=10).sampler})
    async with dispatching(tmp_path, fleet, config) as dispatcher:
        assert fleet.in_flight == [0, 1]
        await fleet.finish_with(1, (0.5, 1))
        await fleet.finish_with(0, (0.9, 9), state="failed")
        await fleet.finish_with(0, (0.1, 0))
        told: Told = []

        async def tell(method: str, model: Recoverability) -> None:
            told.append((method, model))

        dispatcher.pivots._tell = tell
        assert [o.ticket for o in _state(dispatcher.pivots).pending] == [1, 0]
        await dispatcher.pivots.advance(1)
        assert told == [("use_recoverability", fit([(0.1,), (0.5,)], [False, True]))]
        assert _state(dispatcher.pivots).pending == ()
        await update(dispatcher, 1, 0, 1)
        await fleet.finish_with(2, (0.7, 1))
        assert [o.ticket for o in _state(dispatcher.pivots).window] == [0, 1]
        assert [o.ticket for o in _state(dispatcher.pivots).pending] == [2]
        await fleet.finish_with(3)


def _state(pivots: PivotMemory) -> PivotState:
    state = pivots.state()
    assert state is not None
    return state


async def test_every_actor_is_told_once() -> None:
    fleet = Fleet(actors=3)
    await fleet.up(RunConfig()).tell("use_recoverability", FIT)
    assert [handle.told for handle in fleet.handles] == [{"use_recoverability": (FIT,)}] * 3


@pytest.mark.parametrize(("settings", "takes"), [(DdeSettings(), True), (ParallelSettings(), False)])
async def test_an_actor_chooses_pivots_by_what_it_was_told(settings: SamplerSettings, takes: bool) -> None:
    actor = object.__new__(RolloutActor)  # without its engine
    actor._sampler = build_sampler(settings)
    await actor.use_recoverability(FIT)
    assert (getattr(actor._sampler, "recoverability", None) == FIT) is takes


async def test_an_actor_that_does_not_answer_is_named_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, fleet = Ends(monkeypatch), Fleet(actors=2)
    fleet.handles[1].silent.add("use_recoverability")
    actors = fleet.up(RunConfig.model_validate({"sync": {"timeout_s": 0.05}}))
    await actors.tell("use_recoverability", FIT)
    assert "rollout actor 1 did not answer use_recoverability within 0.05 s (sync.timeout_s)" in fleet.said[0]
    assert fleet.handles[0].told == {"use_recoverability": (FIT,)}
    await eventually(lambda: ends.processes == [1])
    await actors.close()


# --- checkpoints -----------------------------------------------------------------------------------------------------


async def learned(run: Run) -> None:
    """One update of ten pivots, and receipts that came after it."""
    run.pivots.add(receipt(3, (0.1, 3), (1 / 3, 0)))
    run.pivots.add(receipt(2, *MIXED * 2))
    await run.pivots.advance(1)
    run.pivots.add(receipt(7, (0.7, 0)))
    run.pivots.add(receipt(5, (0.2, 1)))


async def test_a_checkpoint_keeps_what_was_learned(tmp_path: Path) -> None:
    run = Run(tmp_path, sampler="dde")
    await learned(run)
    await run.update(1)
    state = read_pivots(run.folder.checkpoint(1))
    assert state == run.pivots.state()
    assert [(o.ticket, o.features, o.recovered) for o in state.window[-3:]] == [
        (2, (0.9,), False),
        (3, (0.1,), True),
        (3, (1 / 3,), False),
    ]
    assert (len(state.window), len(state.weights)) == (10, 1)
    assert state.weights[0] < 0
    assert [o.ticket for o in state.pending] == [7, 5]
    run.ledger.close()


async def test_a_run_goes_on_learning_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    run = Run(tmp_path, sampler="dde")
    await learned(run)
    await run.update(1)
    run.ledger.close()
    run.folder.release()
    point = resume_point(run.folder.path, [], None)
    again, told = memory(min_labels=10)
    await again.restore(point.pivots)
    assert told == [("use_recoverability", run.pivots.model)]
    assert again.state() == run.pivots.state()
    for one in (run.pivots, again):
        one.add(receipt(6, (0.6, 1)))
        await one.advance(2)
    assert again.state() == run.pivots.state()
    assert again.model == told[-1][1] != told[0][1]
    point.folder.release()


async def test_before_the_first_fit_there_is_a_state_too(tmp_path: Path) -> None:
    run = Run(tmp_path, sampler="dde")
    await run.update(1)
    assert read_pivots(run.folder.checkpoint(1)) == PivotState(weights=(0.0,), bias=0.0, window=(), pending=())
    run.ledger.close()


async def test_other_samplers_leave_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.update(1)
    assert not (run.folder.checkpoint(1) / "sampler").exists()
    run.ledger.close()
    run.folder.release()
    point = resume_point(run.folder.path, [], None)
    assert point.pivots is None
    point.folder.release()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "no state of a run this version reads"),
        (b'{"weights": [0.5]}', "bias: Field required"),
        (b'{"weights": [NaN], "bias": 0, "window": [], "pending": []}', "weights.0: Input should be a finite number"),
        (b'{"weights": [1], "bias": 0, "window": [], "pending": [], "more": 1}', "more: Extra inputs"),
    ],
)
async def test_a_damaged_state_is_refused_before_anything_starts(tmp_path: Path, data: bytes | None, says: str) -> None:
    run = Run(tmp_path, sampler="dde")
    await run.update(1)
    run.ledger.close()
    run.folder.release()
    path = run.folder.checkpoint(1) / "sampler" / "pivots.json"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        resume_point(run.folder.path, [], None)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_ten_thousand_pivots_come_back_bit_for_bit(tmp_path: Path) -> None:
    run = Run(tmp_path, sampler="dde")
    for index in range(2500):
        run.pivots.add(receipt(index, *[((index * 4 + i) / 10007, (index + i) % 3) for i in range(4)]))
    await run.pivots.advance(1)
    await run.update(1)
    assert read_pivots(run.folder.checkpoint(1)) == run.pivots.state()
    run.ledger.close()
