"""evaluations.jsonl: when there is a line, what a resumed run finds; and where the token budget ends the loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Set
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.schema import EvalSettings, RunConfig, RunSettings, StopSettings
from learner.update_sums import UpdateSums
from orchestration import evaluations
from orchestration.budget import beyond_bound, is_over
from orchestration.dispatch import Dispatcher as Dispatching
from orchestration.driver import Driver
from orchestration.evaluation import Evaluation
from orchestration.evaluations import Evaluations
from orchestration.interrupt import Interrupt
from orchestration.ledger import Ledger, State
from orchestration.metrics_table import HeldOutMetrics
from orchestration.replay_buffer import Taken
from orchestration.run_folder import RunFolder
from orchestration.totals import Totals
from tests.orchestration.fleet import Fleet, configured, settle, taken
from tests.orchestration.small_run import BEFORE

TOKENS_AN_UPDATE = 1000


class Recorder:
    """Every update samples the same number of tokens."""

    def __init__(self, config: RunConfig) -> None:
        self.totals = Totals()
        self.recorded: list[int] = []
        self.evaluated = 0
        self.tracked: list[HeldOutMetrics] = []
        self._config = config

    async def begin(self) -> None: ...

    def learner_waits(self) -> Any:
        return nullcontext()

    async def record(self, update: int, *_: Any) -> None:
        self.recorded.append(update)
        self.totals = Totals(sampled_tokens=TOKENS_AN_UPDATE * update, env_steps=10 * update)

    def is_over(self, updates: int) -> bool:
        return is_over(self._config.run, updates, self.totals.sampled_tokens)

    async def beside_training(self, evaluating: Awaitable[Evaluation]) -> Evaluation:
        self.evaluated += 1
        return await evaluating

    def held_out(self, line: HeldOutMetrics) -> None:
        self.tracked.append(line)


class Pivots:
    async def advance(self, version: int) -> None: ...


class Dispatcher:
    """A batch is always ready."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.queue, self.wanted, self.taking = "", frozenset[int](), asyncio.Lock()
        self.stopped = False
        self.pivots = Pivots()

    def issue(self) -> None: ...

    def book_batch(self, taken: Taken) -> None: ...

    def book_trained(self, taken: Taken) -> None: ...

    async def batch_ready(self) -> int:
        return 1

    def advance(self, version: int) -> None:
        self.version = version

    async def stop(self) -> None:
        self.stopped = True


class Others:
    """Queue, learner ranks, actors, checkpoints and the guard, which have nothing to object."""

    def __init__(self) -> None:
        self.checkpoints = list[int]()

    async def take(self, *_: Any) -> tuple[Taken, Any]:
        header: Any = object()
        return Taken((header,), ()), None

    async def update(self, payloads: Any) -> UpdateSums:
        return UpdateSums(steps=1)

    async def sync(self) -> None: ...

    async def look_at(self, *_: Any) -> None: ...

    async def write(self, update: int, *_: Any) -> None:
        self.checkpoints.append(update)


class Run:
    """The loop on stand-ins, with a real log."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, version: int = 0, **groups: Any) -> None:
        config = RunConfig.model_validate(groups)
        others: Any = Others()
        recorder: Any = Recorder(config)
        recorder.totals = Totals(sampled_tokens=TOKENS_AN_UPDATE * version)
        dispatcher: Any = Dispatcher(version)
        self.folder, self.said = RunFolder(path), list[str]()
        self.others, self.recorder, self.dispatcher = others, recorder, dispatcher
        self.evaluations = Evaluations(config, self.folder, others, recorder, self.said.append)

        async def evaluated(*_: Any) -> Evaluation:
            return BEFORE

        monkeypatch.setattr(evaluations, "evaluate", evaluated)
        self.driver = Driver(
            config,
            others,
            dispatcher,
            others,
            others,
            others,
            recorder,
            others,
            self.evaluations,
            Interrupt(self.said.append),
        )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.evaluations.read_text().splitlines()]


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_lines_every_few_updates_but_not_at_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, run={"updates": 6}, eval={"every": 2})
    run.evaluations.write(0, BEFORE)
    await run.driver.train()
    run.evaluations.write(6, replace(BEFORE, success=0.9))
    assert [line["update"] for line in run.lines()] == [0, 2, 4, 6]
    assert run.recorder.evaluated == 2
    assert [asdict(line) for line in run.recorder.tracked] == run.lines()
    assert run.lines()[1] == {
        "update": 2,
        "generated_tokens": 2 * TOKENS_AN_UPDATE,
        "env_steps": 20,
        "success": 0.5,
        "success_low": pytest.approx(0.01, abs=1e-6),  # of 0.25 and 0.75: 0.5 -+ 1.96 * 0.25
        "success_high": pytest.approx(0.99, abs=1e-6),
        "pass_at_k": {"4": 0.8},
        "coverage": 0.75,
        "distinct_solutions": 1.5,
        "answer_entropy": 0.9,
    }
    assert run.lines()[-1]["success"] == 0.9
    assert "success after 2 updates: 0.500, coverage 0.750" in run.said


async def test_episodes_that_could_not_be_judged_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, run={"updates": 2}, eval={"every": 1})
    await run.driver.train()  # BEFORE has one such episode
    assert run.said[0] == "warning: 1 held-out episodes could not be judged: boom"
    run.evaluations.write(2, replace(BEFORE, unjudged=0))
    assert len([line for line in run.said if "warning" in line]) == 1


async def test_without_eval_every_there_is_no_evaluation_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, run={"updates": 3})
    await run.driver.train()
    assert run.recorder.evaluated == 0
    assert not run.folder.evaluations.exists()


async def test_a_checkpoint_holds_what_was_evaluated_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies between the two evaluates the same update again: it has one line of it."""
    run = Run(tmp_path, monkeypatch, run={"updates": 4}, eval={"every": 2}, checkpoint={"every": 2})
    order: list[str] = []
    monkeypatch.setattr(Evaluations, "write", lambda self, update, _: order.append(f"evaluated {update}"))
    write = run.others.write

    async def checkpoint(update: int, *_: Any) -> None:
        order.append(f"checkpoint {update}")
        await write(update)

    run.others.write = checkpoint
    await run.driver.train()
    assert order == ["evaluated 2", "checkpoint 2", "checkpoint 4"]


def test_a_line_of_the_same_update_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    for update in (0, 2, 4):
        run.evaluations.write(update, BEFORE)
    run.evaluations.write(4, replace(BEFORE, success=0.75))
    assert [(line["update"], line["success"]) for line in run.lines()] == [(0, 0.5), (2, 0.5), (4, 0.75)]


def test_rolled_back_there_are_no_later_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    evaluations.roll_back(run.folder, 3)  # of a run without any: nothing happens
    for update in (0, 2, 4):
        run.evaluations.write(update, BEFORE)
    evaluations.roll_back(run.folder, 3)
    assert [line["update"] for line in run.lines()] == [0, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["evaluations.jsonl"]


# --- beside the dispatcher -------------------------------------------------------------------------------------------


class Queue:
    """Gives what the ledger calls queued; batches: the tickets of each."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self.batches = ledger, list[list[int]]()

    async def take(self, size: int, version: int, wanted: Set[int]) -> tuple[Taken, Any]:
        self.batches.append(self._ledger.indices(State.QUEUED)[:size])
        assert wanted >= set(self.batches[-1])
        return taken(*self.batches[-1]), None


async def without_lag(
    path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> tuple[list[Any], list[list[int]], int]:
    """Tickets as they were issued, batches, and how many tickets ended beside evaluations, of four updates at lag 0."""
    config = configured(lag=0, updates=4).model_copy(update={"eval": EvalSettings(every=every)})
    fleet, beside = Fleet(), 0
    monkeypatch.setattr(evaluations, "evaluate", lambda *_: evaluating())

    async def evaluating() -> Evaluation:
        nonlocal beside
        await settle()
        while fleet.in_flight:
            await finish(fleet.in_flight[0])
            beside += 1
        return BEFORE

    async def finish(index: int) -> None:
        await fleet.finish(index, state="filtered" if index % 3 == 1 else "queued")

    async def end_tickets() -> None:
        while True:
            await settle()
            for index in fleet.in_flight[:1]:
                await finish(index)

    path.mkdir()
    with Ledger(path / "ledger.sqlite") as ledger:
        others: Any = Others()
        recorder: Any = Recorder(config)
        queue: Any = Queue(ledger)
        actors = fleet.up(config)
        dispatcher = Dispatching(config, actors, ledger)
        log = Evaluations(config, RunFolder(path), actors, recorder, lambda _: None)
        driver = Driver(config, others, dispatcher, queue, others, actors, recorder, others, log, Interrupt(print))
        ending = asyncio.create_task(end_tickets())
        await driver.train()
        ending.cancel()
        issued = [(ticket.index, ticket.seed) for _, ticket in fleet.asked]
    return issued, queue.batches, beside


async def test_at_lag_0_tickets_end_beside_an_evaluation_and_training_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued, batches, _ = await without_lag(tmp_path / "without", monkeypatch, 0)
    assert len(batches) == 4
    again, same, beside = await without_lag(tmp_path / "with", monkeypatch, 1)
    assert beside >= 3
    assert (again, same) == (issued, batches)


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "updates"), [(None, 6), (1, 1), (1000, 1), (1001, 2), (2500, 3), (6000, 6), (99_999, 6)]
)
async def test_the_update_that_reaches_the_budget_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int | None, updates: int
) -> None:
    run = Run(tmp_path, monkeypatch, run={"updates": 6, "max_tokens": budget})
    await run.driver.train()
    assert run.recorder.recorded == list(range(1, updates + 1))
    assert run.others.checkpoints == [updates]
    assert run.dispatcher.stopped


async def test_a_budget_that_was_spent_before_leaves_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a run that died behind its last checkpoint."""
    run = Run(tmp_path, monkeypatch, version=3, run={"updates": 6, "max_tokens": 2500}, eval={"every": 1})
    await run.driver.train()
    assert (run.recorder.recorded, run.recorder.evaluated, run.others.checkpoints) == ([], 0, [])


async def test_the_last_update_of_a_budget_is_not_evaluated_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, run={"updates": 6, "max_tokens": 2000}, eval={"every": 1})
    await run.driver.train()
    assert [line["update"] for line in run.lines()] == [1]


def test_a_budget_counts_from_its_last_token() -> None:
    settings = RunSettings(updates=5, max_tokens=100)
    assert [is_over(settings, 2, tokens) for tokens in (99, 100)] == [False, True]
    assert [is_over(settings, updates, 0) for updates in (4, 5)] == [False, True]


# --- a metric's bound ------------------------------------------------------------------------------------------------


def test_a_stop_counts_updates_in_a_row_and_passes_over_missing_values() -> None:
    stop = StopSettings(metric="zero_advantage_share", at_least=0.9, updates=3)
    counts, beyond = [], 0
    for value in (0.95, 0.9, 0.5, 1.0, None, float("nan"), 0.92, 0.9):
        beyond = beyond_bound(stop, beyond, value)
        counts.append(beyond)
    assert counts == [1, 2, 0, 1, 1, 1, 2, 3]
    settings = RunSettings(updates=50, stop=stop)
    assert [is_over(settings, 8, 0, n) for n in (2, 3)] == [False, True]


def test_a_stop_from_above() -> None:
    stop = StopSettings(metric="entropy", at_most=0.0)
    assert [beyond_bound(stop, 4, value) for value in (0.1, 0.0, -1.0)] == [0, 5, 5]


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 0.0}])
def test_a_stop_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="either at_least or at_most"):
        StopSettings(metric="entropy", **bounds)
