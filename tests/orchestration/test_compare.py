"""`python -m orchestration.compare` as a user runs it, with runs that take no time, and once with real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration import compare
from orchestration.comparison_plan import ROOT
from orchestration.comparison_run import Task
from tests.orchestration.compared_runs import COMPARISON, Ended, FakeLauncher, comparison_file

JUDGED = COMPARISON + "evaluate: {modes: [plain], samples: 3, episodes: 4}\n"


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    launcher = FakeLauncher()
    monkeypatch.setattr(compare, "LocalLauncher", lambda: launcher)
    return launcher


def call(folder: Path, *arguments: str) -> int:
    return compare.main(["--config", str(folder / "few.yaml"), "--root", str(folder / "runs"), *arguments])


def began(launcher: FakeLauncher) -> list[str]:
    names = [task.name for task in launcher.began]
    launcher.began.clear()
    return names


def test_a_whole_comparison(tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    comparison_file(tmp_path, JUDGED)
    assert call(tmp_path, "--output", str(tmp_path / "results" / "few.json")) == 0
    assert began(launcher) == [
        "one-seed-0", "two-seed-0", "one-seed-1", "two-seed-1", "start.plain-3x4", "one-seed-0.plain-3x4",
        "two-seed-0.plain-3x4", "one-seed-1.plain-3x4", "two-seed-1.plain-3x4",
    ]  # fmt: skip
    here, there = tmp_path / "runs" / "few", tmp_path / "results"
    found = json.loads((here / "comparison.json").read_text())
    assert found["methods"]["two"]["finished_seeds"] == [0, 1]
    assert found == json.loads((there / "few.json").read_text())
    names = {"success", "entropy", "pass-at-k", "pass-at-k-plain"}
    assert {p.name for p in there.iterdir()} == {"few.json", "few.md", *(f"few-{name}.svg" for name in names)}
    assert "<td" in (here / "comparison.html").read_text()
    text = (there / "few.md").read_text()
    assert "![few-success.svg](few-success.svg)" in text
    assert "| two | 2 of 2 |" in capsys.readouterr().out


def test_what_is_finished_is_kept(tmp_path: Path, launcher: FakeLauncher) -> None:
    comparison_file(tmp_path)
    assert call(tmp_path, "--only", "two") == 0
    assert began(launcher) == ["two-seed-0", "two-seed-1"]
    assert call(tmp_path) == 0
    assert began(launcher) == ["one-seed-0", "one-seed-1"]
    assert call(tmp_path) == 0
    assert began(launcher) == []


def test_a_failure_is_told_and_the_others_go_on(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison_file(tmp_path, JUDGED)
    launcher.broken = ["two-seed-0"]
    assert call(tmp_path) == 1
    assert "two-seed-0.plain-3x4" not in began(launcher)
    said = capsys.readouterr().out
    assert "two-seed-0: FAILED with exit status 3" in said
    assert "error: it broke" in said
    assert "**two, seed 0, is missing: exit status 3.**" in said
    launcher.broken = []
    assert call(tmp_path) == 0
    assert began(launcher) == ["two-seed-0", "two-seed-0.plain-3x4"]
    assert "missing" not in (tmp_path / "runs" / "few" / "comparison.md").read_text()


def test_nothing_finished_is_nothing_to_compare(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison_file(tmp_path)
    launcher.broken = ["one-seed-0", "one-seed-1", "two-seed-0", "two-seed-1"]
    assert call(tmp_path) == 1
    assert "no run is finished" in capsys.readouterr().err
    assert call(tmp_path, "--report") == 2


def test_a_report_runs_nothing(tmp_path: Path, launcher: FakeLauncher) -> None:
    comparison_file(tmp_path)
    assert call(tmp_path, "--only", "one") == 0
    began(launcher)
    assert call(tmp_path, "--report") == 0
    assert began(launcher) == []
    found = json.loads((tmp_path / "runs" / "few" / "comparison.json").read_text())
    assert found["methods"]["two"]["missing"] == {"0": "not finished", "1": "not finished"}


def test_a_dry_run_prints_commands_and_leaves_nothing(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison_file(tmp_path, JUDGED.replace("one: []", "one: {after: two}"))
    assert call(tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.count("python orchestration/run.py --config") == 4
    assert said.count("python -m orchestration.evaluate --config") == 5
    assert "run.name=one-seed-1  # after two-seed-1" in said
    assert began(launcher) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("tokens: 1000", "tokns: 1000", "tokns: unknown key; did you mean 'tokens'?"),
        ("one: []", "one: [optim.lrr=1]", "methods.one: override optim.lrr=1: optim.lrr: unknown key"),
        ("BASE", "nowhere.yaml", "nowhere.yaml: no such file"),
        ("one: []", "one: ['env={size: 16, random_ends: false}']", "methods.one: env.hole_share 0.2 with env.size 16"),
    ],
)
def test_bad_input_starts_nothing(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    comparison_file(tmp_path, COMPARISON.replace(old, new))
    assert call(tmp_path) == 2
    assert began(launcher) == []
    errors = capsys.readouterr().err
    assert expected in errors
    assert all(line.startswith("error: ") for line in errors.splitlines())
    assert not (tmp_path / "runs").exists()


def test_all_that_a_run_or_the_judge_would_refuse_is_told_at_once(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
base: BASE
tokens: 1000
seeds: [0, 1]
methods:
  one: ["run.stop={metric: entorpy, at_most: 0.1}", "env={size: 16, random_ends: false}"]
  two: [checkpoint.every=5, checkpoint.best_by=nosuch, "env={name: math, data: /nope.jsonl}"]
evaluate: {overrides: ["env={size: 15, hole_share: 0.25, random_ends: false}"]}
"""
    comparison_file(tmp_path, text)
    assert call(tmp_path) == 2
    assert began(launcher) == []
    lines = capsys.readouterr().err.splitlines()
    expected = [
        "methods.one: run.stop.metric: metrics.jsonl has no 'entorpy'; did you mean 'entropy'?",
        "methods.two: checkpoint.best_by: metrics.jsonl has no 'nosuch'",
        "methods.one: env.hole_share 0.2 with env.size 16",
        "methods.two: env.data: there is no file or folder /nope.jsonl",
        "evaluate: env.hole_share 0.25 with env.size 15",
    ]
    assert len(lines) == len(expected)
    assert all(line.startswith(f"error: {start}") for line, start in zip(lines, expected, strict=True)), lines


def test_methods_are_not_chosen_for_a_report_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison_file(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, "--only", "one", "--report")
    assert ended.value.code == 2
    assert "argument --report: not allowed with argument --only" in capsys.readouterr().err


def test_a_report_that_would_run_nothing_twice_is_refused(
    tmp_path: Path, launcher: FakeLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison_file(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, "--report", "--dry-run")
    assert ended.value.code == 2
    assert "--report runs nothing anyway: leave --dry-run out" in capsys.readouterr().err
    assert began(launcher) == []


def test_a_full_disk_leaves_the_comparison_before(
    tmp_path: Path, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison_file(tmp_path)
    assert call(tmp_path) == 0
    files = [p for p in (tmp_path / "runs" / "few").iterdir() if p.name.startswith("comparison")]
    before = {file: file.read_bytes() for file in files}

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    launcher.summary = lambda _: {"success_after": 0.9}
    shutil.rmtree(tmp_path / "runs" / "few" / "one-seed-0")
    with monkeypatch.context() as patched:
        patched.setattr("learner.durable.os.write", full)
        assert call(tmp_path) == 1
    assert {file: file.read_bytes() for file in files} == before
    assert call(tmp_path, "--report") == 0
    assert (tmp_path / "runs" / "few" / "comparison.json").read_bytes() != before[files[0].parent / "comparison.json"]


def test_fewer_than_one_job_is_refused(tmp_path: Path, launcher: FakeLauncher) -> None:
    comparison_file(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, "--jobs", "0")
    assert ended.value.code == 2


def test_interrupted(tmp_path: Path, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    comparison_file(tmp_path)
    monkeypatch.setattr(launcher, "start", interrupt)
    assert call(tmp_path) == 130


@pytest.fixture
def hangup() -> Iterator[None]:
    """Handlers of signals as they were before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_closed_terminal_and_a_scheduler_interrupt_it_too(
    tmp_path: Path, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch, hangup: None, number: int
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    comparison_file(tmp_path)
    # By then a handler must be there: without one the signal would end this process.
    monkeypatch.setattr(launcher, "start", lambda _: signal.raise_signal(signal.Signals(number)))
    assert call(tmp_path) == 130


def test_under_nohup_a_closed_terminal_is_nothing(
    tmp_path: Path, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch, hangup: None
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    comparison_file(tmp_path)
    start = launcher.start

    def hung_up(task: Task) -> Ended:
        signal.raise_signal(signal.SIGHUP)
        return start(task)

    monkeypatch.setattr(launcher, "start", hung_up)
    assert call(tmp_path) == 0


REAL = """
base: BASE
tokens: 2000
seeds: [0, 1]
overrides: [eval.every=1, eval.episodes=8, eval.samples=4, rollout.actors=1, deepspeed.ranks=1, checkpoint.every=1,
            grpo.groups_per_update=4, grpo.drop_zero_signal=false, model.path=POLICY]
methods:
  parallel: ["sampler={name: parallel, group_size: 4}"]
  sesa: ["sampler={name: sesa, sketches: 4, train_on: both}"]
"""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_methods_and_two_seeds_on_the_real_stack(tmp_path: Path, small_policy: Path) -> None:
    comparison_file(tmp_path, REAL.replace("POLICY", str(small_policy)))
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.compare", "--config", str(tmp_path / "few.yaml"),
         "--root", str(tmp_path / "runs")],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads((tmp_path / "runs" / "few" / "comparison.json").read_text())
    for method in found["methods"].values():
        assert method["finished_seeds"] == [0, 1]
        assert method["short_of_tokens"] == {}
        assert method["figures"]["generated_tokens"]["mean"] >= 2000
        assert None not in method["curves"]["success"]["mean"]
    starts = [run["figures"]["success_before"] for run in found["runs"]]
    assert starts[0] == starts[1]  # the same policy on the same episodes, whatever the method
