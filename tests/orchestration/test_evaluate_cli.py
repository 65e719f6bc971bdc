"""`python -m orchestration.evaluate` as a user runs it, on the real engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = ["cluster.dashboard=false", "rollout.actors=1", "eval.episodes=6", "sampler.sketches=4"]


def judged(output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The file of figures, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.evaluate", "--config", "configs/quickstart.yaml",
         "--output", str(output), *arguments, *SMALL],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text()), done.stdout


def test_policies_side_by_side(small_policy: Path, tmp_path: Path) -> None:
    """The same policy by another name has the same figures: the same episodes, the same samples."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "policy").symlink_to(small_policy)
    read, shown = judged(tmp_path / "figures.json", "--policy", str(small_policy), str(run), "--samples", "4")
    first, second = read["policies"]
    assert "2 x" not in shown  # no learner ranks
    assert [first["name"], second["name"]] == [str(small_policy), str(run)]
    assert first["digest"] == second["digest"]
    assert (read["mode"], read["samples"], read["lists"], first["episodes"]) == ("plain", 4, 1, 6)
    assert first["success"]["mean"] == pytest.approx(first["pass_at_k"]["1"]["mean"])
    assert list(first["pass_at_k"]) == ["1", "2", "3", "4"]
    assert first["env_steps"] >= 6 * 4
    assert second["success_gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    for name in ("success", "pass_at_k", "answer_entropy", "sampled_tokens", "by_episode"):
        assert first[name] == second[name]


def test_lists_of_an_episode_differ(small_policy: Path, tmp_path: Path) -> None:
    read, _ = judged(tmp_path / "figures.json", f"model.path={small_policy}", "--mode", "guided", "--samples", "8")
    [policy] = read["policies"]
    assert (read["lists"], read["list_length"], read["sampler"]["name"]) == (2, 4, "sesa")
    assert [len(policy[key]) for key in ("pass_at_k", "first_pass_at_k")] == [8, 4]
    # Two lists from the same seeds would hold every answer twice: at most log(4).
    assert policy["answer_entropy"]["mean"] > 0
    assert policy["distinct_solutions"]["mean"] >= policy["first_distinct_at_k"]["4"]["mean"]
