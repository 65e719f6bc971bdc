"""Each environment trains on the real stack: its shipped config, cut down to one update of a hardly taught policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.cluster import ROOT
from tests.envs.cases import QUESTIONS

TINY = [
    "run.updates=1", "grpo.groups_per_update=4", "grpo.drop_zero_signal=false", "sampler.sketches=3",
    "eval.episodes=8", "eval.samples=2", "cluster.dashboard=false", "rollout.actors=1", "deepspeed.ranks=1",
    "model.warmup.layers=1", "model.warmup.hidden=64", "model.warmup.heads=2", "model.warmup.demonstrations=400",
]  # fmt: skip


def config_for_math(folder: Path) -> Path:
    """The one task without a file of its own: it needs data."""
    records = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(records), encoding="utf-8")
    config = folder / "math.yaml"
    config.write_text(f"env: {{name: math, data: {folder / 'questions.jsonl'}}}\nsampler: {{name: sesa}}\n")
    return config


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("task", ["path_exploration", "sokoban", "countdown", "sudoku", "math"])
def test_a_task_trains_on_the_real_stack(task: str, tmp_path: Path) -> None:
    config = config_for_math(tmp_path) if task == "math" else ROOT / "configs" / f"{task}.yaml"
    arguments = [*TINY, f"run.root={tmp_path / 'runs'}", "run.name=it", f"model.warmup.cache={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "orchestration/run.py", "--config", str(config), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "it" / "summary.json").read_text())
    assert (summary["env"], summary["sampler"], summary["updates"]) == (task, "sesa", 1)
    assert summary["ledger_balanced"]
    assert summary["tickets"]["trained"] == 4
    assert summary["tickets"]["failed"] == 0
    assert 0 <= summary["success_after"] <= 1
