"""The Ray dashboard in a browser while a run goes on: our processes are there, by names that tell what they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.cluster import ROOT
from tests.browser import in_a_browser
from tests.orchestration.test_view import rendered
from tests.ports import free_port

pytestmark = [pytest.mark.real, pytest.mark.timeout(400), in_a_browser]


def test_our_processes_are_in_the_dashboard(small_policy: Path, tmp_path: Path) -> None:
    port, run = free_port(), tmp_path / "runs" / "seen"
    process = subprocess.Popen(
        [
            sys.executable, "orchestration/run.py", "--config", "configs/quickstart.yaml", f"model.path={small_policy}",
            f"run.root={run.parent}", f"run.name={run.name}", f"cluster.dashboard_port={port}", "eval.episodes=2",
            "eval.samples=1", "grpo.groups_per_update=4", "rollout.tokens_per_turn=32",
        ],
        cwd=ROOT, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        actors = rendered(f"http://127.0.0.1:{port}/#/actors", tmp_path / "actors")
        for name in ("rollout actor 0", "rollout actor 1", "learner rank 0", "learner rank 1", "replay queue"):
            assert f"{name} ({process.pid})" in actors
        assert actors.count("ALIVE") >= 5
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said[-2000:]
    assert f"go on with: python orchestration/run.py --resume {run}" in said
