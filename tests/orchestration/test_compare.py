"""`python -m orchestration.compare` as a user runs it, with runs that take no time, and once with real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration import compare
from orchestration.comparison_plan import ROOT
from tests.orchestration.compared_runs import COMPARISON, FakeLauncher, comparison_file

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
