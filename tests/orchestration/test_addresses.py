"""A submitted job on Ray nodes with addresses of their own: head, learner's node, rollout actors' nodes."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from orchestration.cluster import ROOT
from orchestration.elastic import State, read_state
from tests.chaos.harness import SETTINGS
from tests.orchestration.networks import DASHBOARD, Network, network, why_not
from tests.orchestration.test_elastic_runs import updates
from tests.orchestration.test_job_submit import BIN

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
LIMIT_S = 240.0
T = TypeVar("T")
AGREES = 1e-4  # nats: largest distance of log-probs of engine and learner; other weights are far beyond


def test_a_job_over_five_addresses_loses_a_node_and_gets_another(small_policy: Path, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with network() as net:
        net.add(0, "role=head")
        for _ in range(2):  # there is room for one rank on each
            net.add(1, "role=learner")
        first, second = net.add(1, "role=actors"), net.add(1, "role=actors")
        run = tmp_path / "it"
        job = submit(
            net, f"model.path={small_policy}", f"run.root={tmp_path}", "run.name=it", "run.updates=100000",
            "deepspeed.ranks=2", "rollout.actors=2", "deepspeed.node_labels={role: learner}",
            "rollout.node_labels={role: actors}", "cluster.placement_timeout_s=60",
        )  # fmt: skip
        said = Log(net, job)
        up = wait_for(lambda: state_of(run, lambda state: state.up == 2), said)
        assert {place.split()[0] for place in up.places.values()} == {first, second}
        wait_for(lambda: len(lines(run)) >= 3, said)

        net.remove(second)
        wait_for(lambda: state_of(run, lambda state: state.up == 1), said)
        more = len(lines(run)) + 2
        wait_for(lambda: len(lines(run)) >= more, said)  # the other one goes on
        third = net.add(1, "role=actors")
        up = wait_for(lambda: state_of(run, lambda state: state.up == 2), said)
        assert {place.split()[0] for place in up.places.values()} == {first, third}
        more = len(lines(run)) + 3
        wait_for(lambda: len(lines(run)) >= more, said)

        subprocess.run(net.in_head(*job_command(net, "stop", job)), env=net.environment, check=True, timeout=120,
                       capture_output=True)  # fmt: skip
        wait_for(lambda: f"go on with: python orchestration/run.py --resume {run}" in said(), said)
    figures = updates(run)
    assert max(line["policy_lag_max"] for line in figures) <= 1
    compared = [line["logprob_abs_diff_max"] for line in figures if line["logprob_abs_diff_max"] is not None]
    assert compared
    assert max(compared) < AGREES
    assert all(line["ledger_missing"] == 0 for line in figures)


def job_command(net: Network, *arguments: str) -> list[str]:
    return [str(BIN / "ray"), "job", arguments[0], "--address", f"http://127.0.0.1:{DASHBOARD}", *arguments[1:]]


def submit(net: Network, *settings: str) -> str:
    """The job's name. A head that is just up refuses jobs until its agent is there."""
    command = net.in_head(
        *job_command(net, "submit", "--no-wait", "--working-dir", ".", "--", "python", "orchestration/run.py",
                     "--config", "configs/quickstart.yaml", *SETTINGS, *settings)
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(command, cwd=ROOT, env=net.environment, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            found = re.search(r"raysubmit_\w+", done.stdout)
            assert found, done.stdout
            return found[0]
        assert "No available agent" in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr
        time.sleep(2)


class Log:
    """What the job has said so far."""

    def __init__(self, net: Network, job: str) -> None:
        self._net, self._command = net, net.in_head(*job_command(net, "logs", job))

    def __call__(self) -> str:
        done = subprocess.run(self._command, env=self._net.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr


def lines(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def state_of(run: Path, what: Callable[[State], bool]) -> State | None:
    state = read_state(run)
    return state if state is not None and what(state) else None


def wait_for(what: Callable[[], T | None], said: Log) -> T:
    deadline = time.monotonic() + LIMIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, said()[-4000:]
        time.sleep(0.5)
    return found
