"""Lines of metrics.jsonl: what was sampled since the update before, and what was spent until then, resumed or not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from actors.engine import EngineClock
from actors.receipt import Receipt
from configs.schema import RunConfig, RunSettings, StopSettings
from envs.codec import Header
from envs.trajectory import GroupStats, PivotTrial
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from orchestration.console import Console
from orchestration.evaluation import Evaluation
from orchestration.ledger import Ledger
from orchestration.recorder import Recorder
from orchestration.replay_buffer import Depth, Taken
from orchestration.run_folder import RunFolder
from orchestration.sampled import Sampled
from orchestration.totals import RecorderState, Totals, Unrecorded
from tests.builders import TICKET
from tests.orchestration.small_run import BEFORE as EVALUATED

TAKEN = Taken((Header(0, 0, 0, 100, 8, 8, True),), ())
SUMS = UpdateSums(tokens=10, forward_tokens=20, entropy=7.0, seconds=0.5, steps=1)
TRIALS = (PivotTrial(0, 3, 0.3, (0.3,), 8, 2, 0.25), PivotTrial(1, 3, 0.9, (0.9,), 8, 0, 0.0))
RECEIPTS = (
    Receipt(
        TICKET, "queued", has_signal=True, solutions=4, solved=1, reward_sum=1.0, distinct_answers=3,
        distinct_solutions=1, stats=GroupStats(sketches=4, duplicate_sketches=1, resampled_sketches=1, env_steps=30),
        pivots=TRIALS, covered=True, branch_tokens=60,
    ),
    Receipt(TICKET, "filtered", solutions=4, stats=GroupStats(duplicate_answers=2, env_steps=12)),
    Receipt(TICKET, "failed", stats=GroupStats(env_steps=5)),
)  # fmt: skip


ACTOR = (0, 1)  # number and life


class Clocks:
    """The fleet, as far as the recorder asks it."""

    def __init__(self) -> None:
        self.own = {ACTOR: EngineClock(0.0, 0.0, 0.0, 0)}

    async def clocks(self) -> dict[tuple[int, int], EngineClock]:
        return dict(self.own)

    @property
    def up(self) -> list[tuple[int, int]]:
        return list(self.own)


class Queue:
    async def depth(self) -> Depth:
        return Depth(0, 0, 0)


class Books:
    """A recorder between stand-ins; `sampled`: the dispatcher's sums, which it will find at the next update."""

    def __init__(
        self, folder: RunFolder, state: RecorderState | None = None, sampled: Sampled | None = None, **run: Any
    ) -> None:
        self.folder, self.ledger = folder, Ledger(folder.ledger)
        self.fleet = Clocks()
        config = RunConfig.model_validate({"run": run})
        dispatcher: Any = SimpleNamespace(
            take_sampled=self._take, ledger=self.ledger, version=1, sampled=sampled or Sampled()
        )
        self.dispatcher = dispatcher
        fleet: Any = self.fleet
        replay: Any = Queue()
        learners: Any = None
        self.said = StringIO()
        console = Console(config, 0.0, self.said)
        self.recorder = Recorder(config, folder, console, fleet, replay, learners, self.dispatcher, 0.0, state)

    def end(self, *receipts: Receipt) -> None:
        """These tickets ended."""
        for receipt in receipts:
            self.dispatcher.sampled.add(receipt)

    async def update(self, number: int, *receipts: Receipt, tokens: int = 0, life: int = 1) -> dict[str, Any]:
        """The line of an update before which these receipts came and `tokens` were sampled in all, in this life."""
        self.end(*receipts)
        self.fleet.own = {(0, life): EngineClock(float(number), 0.5 * number, 0.0, tokens)}
        payloads: Any = None
        await self.recorder.record(number, TAKEN, SUMS, SyncTimes(), payloads)
        line: dict[str, Any] = json.loads(self.folder.metrics.read_text().splitlines()[-1])
        return line

    def _take(self) -> Sampled:
        sampled, self.dispatcher.sampled = self.dispatcher.sampled, Sampled()
        return sampled

    def close(self) -> None:
        self.recorder.__exit__()
        self.ledger.close()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"))
    yield books
    books.close()


def of(line: dict[str, Any], *names: str) -> list[Any]:
    return [line[name] for name in names]


async def test_a_line_tells_of_exploration(books: Books) -> None:
    await books.recorder.begin()
    line = await books.update(1, *RECEIPTS, tokens=500)
    assert of(line, "success", "reward_mean", "zero_advantage_share", "coverage") == [1 / 8, 1 / 8, 0.5, 0.5]
    assert of(line, "distinct_answers_mean", "distinct_solutions_mean", "duplicate_answers") == [1.5, 0.5, 2]
    assert of(line, "duplicate_sketches", "distinct_sketches_share") == [1, 0.8]
    assert of(line, "pivots", "pivots_recovered_share", "pivot_gain_mean", "pivot_depth_mean") == [2, 0.5, 0.125, 0.6]
    by_depth = [name for name in line if name.startswith("recovered_depth")]
    assert of(line, *by_depth) == [None, 1.0, None, 0.0]
    assert of(line, "generated_tokens", "branch_tokens", "env_steps") == [500, 60, 47]


async def test_a_line_tells_of_lags_rates_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"))
    await books.recorder.begin()
    headers = tuple(Header(i, 0, 10 - lag, 100, 8, 8, True) for i, lag in enumerate((0, 1, 1, 2, 3, 4, 9)))
    monkeypatch.setitem(globals(), "TAKEN", Taken(headers, ()))
    books.ledger.issue(TICKET, 0)
    line = await books.update(11, replace(RECEIPTS[0], trajectories=12), replace(RECEIPTS[1], trajectories=4))
    assert [line[name] for name in line if name.startswith("groups_lag_")] == [1, 2, 2, 2]
    assert of(line, "trajectories", "learner_trajectories_per_s") == [7 * 8, 7 * 8 / 0.5]
    assert line["rollout_trajectories_per_s"] > 0
    assert of(line, "actors_up", "ledger_missing", "cache_hit_share") == [1, 0, None]
    # A row that vanished: the ledger's own count of the issued ones tells.
    books.ledger._db.execute("DELETE FROM tickets")
    assert (await books.update(12))["ledger_missing"] == 1
    books.close()


async def test_what_was_spent_adds_up_and_all_else_begins_anew(books: Books) -> None:
    await books.recorder.begin()
    await books.update(1, *RECEIPTS, tokens=500)
    line = await books.update(2, RECEIPTS[0], tokens=700)
    assert of(line, "generated_tokens", "branch_tokens", "env_steps") == [700, 120, 77]
    assert of(line, "pivots", "coverage", "duplicate_answers") == [2, 1.0, 0]


async def test_where_nothing_was_sampled_there_is_no_number(books: Books) -> None:
    await books.recorder.begin()
    line = await books.update(1)
    assert of(line, "coverage", "zero_advantage_share", "success", "pivots_recovered_share") == [None] * 4
    assert of(line, "pivots", "branch_tokens", "env_steps") == [0, 0, 0]


async def test_tokens_of_an_engine_that_was_started_again_add_up(books: Books) -> None:
    await books.recorder.begin()
    assert (await books.update(1, tokens=500))["generated_tokens"] == 500
    assert (await books.update(2, tokens=80, life=2))["generated_tokens"] == 580
    assert (await books.update(3, tokens=100, life=2))["generated_tokens"] == 600


async def test_sums_go_on_after_a_resume(books: Books) -> None:
    await books.recorder.begin()
    await books.update(1, *RECEIPTS, tokens=500)
    again = Books(books.folder, books.recorder.state())
    await again.recorder.begin()
    line = await again.update(2, *RECEIPTS, tokens=100)
    assert of(line, "generated_tokens", "branch_tokens", "env_steps") == [600, 120, 94]
    again.close()


async def test_what_was_spent_before_a_checkpoint_is_the_next_updates_resumed_or_not(books: Books) -> None:
    """A ticket ends between the line of update 1 and the checkpoint; another one is in flight and is sampled again."""
    await books.recorder.begin()
    await books.update(1, RECEIPTS[0], tokens=500)
    ended = replace(RECEIPTS[1], sampled_tokens=200)
    books.end(ended)
    state, sampled = books.recorder.state(), replace(books.dispatcher.sampled)
    assert (state.totals.sampled_tokens, state.unrecorded.tokens) == (500, 200)
    straight = await books.update(2, tokens=500 + 200 + 40)
    again = Books(books.folder, state, sampled)
    await again.recorder.begin()
    resumed = await again.update(2, tokens=40)
    assert of(straight, "generated_tokens", "env_steps") == of(resumed, "generated_tokens", "env_steps") == [740, 42]
    assert (await again.update(3, tokens=100))["generated_tokens"] == 800  # once
    again.close()


async def test_a_wait_that_is_interrupted_counts(books: Books) -> None:
    await books.recorder.begin()
    with suppress(KeyError), books.recorder.learner_waits():
        time.sleep(0.05)
        raise KeyError
    assert 0.05 <= books.recorder.state().unrecorded.learner_waits_s < 5


async def test_a_budget_ends_a_run_with_an_update_and_not_between_two(books: Books) -> None:
    state = RecorderState(0.0, Totals(sampled_tokens=900), 0, Unrecorded(tokens=200, wall_s=3.0, learner_waits_s=1.0))
    again = Books(books.folder, state, max_tokens=1000)
    await again.recorder.begin()
    assert not again.recorder.is_over(1)
    assert (await again.update(2))["generated_tokens"] == 1100
    assert again.recorder.is_over(2)
    # Its seconds are the update's too.
    assert again.recorder.totals.training_s >= 3.0
    assert again.recorder.totals.learner_waits_s == 1.0
    again.close()


async def test_an_evaluation_and_the_tickets_beside_it_before_a_checkpoint(books: Books) -> None:
    """The evaluation samples 600 tokens, tickets that end meanwhile 1000: those are of update 2."""

    async def evaluating() -> Evaluation:
        books.fleet.own = {ACTOR: EngineClock(9.0, 4.5, 0.0, 500 + 1000 + 600)}
        books.end(replace(RECEIPTS[1], sampled_tokens=1000))
        return replace(EVALUATED, sampled_tokens=600)

    await books.recorder.begin()
    await books.update(1, tokens=500)
    await books.recorder.beside_training(evaluating())
    state, sampled = books.recorder.state(), replace(books.dispatcher.sampled)
    assert (await books.update(2, tokens=2100))["generated_tokens"] == 1500
    again = Books(books.folder, state, sampled)
    await again.recorder.begin()
    assert (await again.update(2))["generated_tokens"] == 1500
    again.close()


# --- run.stop --------------------------------------------------------------------------------------------------------

ALIKE = {"metric": "zero_advantage_share", "at_least": 0.5, "updates": 2}
OTHER = {"metric": "coverage", "at_most": 0.5, "updates": 2}


async def test_a_metric_ends_the_run_and_says_so(tmp_path: Path) -> None:
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"), stop=ALIKE)
    await books.recorder.begin()
    await books.update(1, *RECEIPTS)  # one of two groups has no signal
    assert not books.recorder.is_over(1)
    await books.update(2, *RECEIPTS)
    assert books.recorder.is_over(2)
    assert "zero_advantage_share ends the run: 2 updates in a row (run.stop)" in books.said.getvalue()
    books.close()


@pytest.mark.parametrize(("rule", "over"), [(ALIKE, True), (OTHER, False), (ALIKE | {"at_least": 0.4}, False)])
async def test_the_count_goes_on_under_its_own_rule_alone(tmp_path: Path, rule: dict[str, Any], over: bool) -> None:
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"), stop=ALIKE)
    await books.recorder.begin()
    await books.update(1, *RECEIPTS)
    state = TypeAdapter(RecorderState).validate_json(TypeAdapter(RecorderState).dump_json(books.recorder.state()))
    assert (state.totals.beyond_stop, state.totals.stop) == (1, StopSettings.model_validate(ALIKE))
    again = Books(books.folder, state, stop=rule)
    await again.recorder.begin()
    await again.update(2, *RECEIPTS)
    assert again.recorder.is_over(2) is over
    books.close()
    again.close()


async def test_the_summary_is_of_all_groups(books: Books) -> None:
    await books.recorder.begin()
    await books.update(1, *RECEIPTS, tokens=500)
    await books.update(2, RECEIPTS[1], tokens=600)
    judged = Evaluation(0.5, {1: 0.25, 2: 0.75}, {1: 0.5}, 1.0, 0.5, 1.0, 10, 10)
    summary = books.recorder.write_summary(judged, judged)
    assert summary.env_steps == 47 + 12
    assert summary.zero_advantage_share_mean == 2 / 3
    assert summary.duplicate_sketches_share == 1 / 5
    assert json.loads(books.folder.summary.read_text())["env_steps"] == 59


def test_the_newest_groups_stay(books: Books) -> None:
    books.recorder._config = RunConfig.model_validate({"observe": {"samples_kept": 2}})
    for update in (999_990, 1_000_000, 1_000_010):
        books.recorder._keep_sample(update, b"group %d" % update)
    there = {path.name: path.read_bytes() for path in books.folder.samples.iterdir()}
    assert there == {"update-1000000.msgpack": b"group 1000000", "update-1000010.msgpack": b"group 1000010"}


def test_a_group_that_cannot_be_kept_is_said(books: Books) -> None:
    shutil.rmtree(books.folder.samples)
    books.recorder._keep_sample(10, b"group")
    assert "No such file or directory: no group of this update is kept" in " ".join(books.said.getvalue().split())
