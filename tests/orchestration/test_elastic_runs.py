"""Rollout actors that come and go while a real run goes on: by `orchestration.scale`, and with the cluster's nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import ROOT
from orchestration.elastic import State, read_state
from tests.chaos.faults import write
from tests.chaos.faulty import TRAINED
from tests.chaos.faulty_env import DONE, FAULTS
from tests.chaos.harness import SETTINGS, check_books, end_with_children

pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]

LIMIT_S = 120.0


@pytest.fixture(autouse=True)
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner writes down what it trains on, on whatever node, and there are no faults from within."""
    write([], tmp_path / "faults.json")
    for name, file in {FAULTS: "faults.json", DONE: "done", TRAINED: "trained.jsonl"}.items():
        monkeypatch.setenv(name, str(tmp_path / file))


@contextmanager
def running(path: Path, policy: Path, *settings: str, address: str = "") -> Iterator[Path]:
    """A run that goes on for long; its folder. It is interrupted at the end, and its books have to be right."""
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.faulty", "--config", "configs/quickstart.yaml", *SETTINGS,
             "run.updates=100000", f"model.path={policy}", f"run.root={path}", "run.name=it", *settings],
            cwd=ROOT, stdout=log, stderr=log, env=os.environ | ({"RAY_ADDRESS": address} if address else {}),
        )  # fmt: skip
    try:
        yield path / "it"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 130, (path / "log").read_text(errors="replace")[-3000:]
        check_books(path / "it", path / "trained.jsonl")
        assert any(line["logprob_abs_diff_max"] is not None for line in updates(path / "it"))
    finally:
        end_with_children(process.pid)


def wait_for(run: Path, what: Callable[[State], bool]) -> State:
    """Until the run says that of its actors."""
    until = time.monotonic() + LIMIT_S
    while (state := read_state(run)) is None or not what(state):
        log = (run.parent / "log").read_text(errors="replace")
        assert time.monotonic() < until, f"{state}: {log[-3000:]}"
        time.sleep(0.2)
    return state


def updates(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for_updates(run: Path, count: int) -> None:
    until, first = time.monotonic() + LIMIT_S, len(updates(run))
    while len(updates(run)) < first + count:
        assert time.monotonic() < until, f"{len(updates(run)) - first} updates within {LIMIT_S:g} s"
        time.sleep(0.2)


def failed(run: Path) -> dict[int, str]:
    """The tickets that came to nothing, and why."""
    with closing(sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True, timeout=30)) as ledger:
        return dict(ledger.execute("SELECT ticket, reason FROM tickets WHERE state = 'failed'"))


def scale(run: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.scale", str(run), what, "--wait", "120"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_actors_are_added_and_taken_away(small_policy: Path, tmp_path: Path) -> None:
    with running(tmp_path, small_policy, "rollout.actors=1", "deepspeed.ranks=1") as run:
        wait_for(run, lambda state: state.up == 1)
        wait_for_updates(run, 1)
        more = scale(run, "actors=2")
        assert more.returncode == 0, more.stderr
        assert "2 wanted, 2 up" in more.stdout
        wait_for_updates(run, 3)
        fewer = scale(run, "actors=1")
        assert fewer.returncode == 0, fewer.stderr
        assert read_state(run).phases["gone"] == [1]  # type: ignore[union-attr]
        wait_for_updates(run, 2)
        assert all((line["logprob_abs_diff_max"] or 0) < 1e-3 for line in updates(run))
        assert not failed(run)
    ended = scale(run, "actors=2")
    assert ended.returncode == 2
    assert "is not running" in ended.stderr


def test_a_node_leaves_and_another_one_joins(small_policy: Path, tmp_path: Path) -> None:
    """The learner and one actor fit on the head: the other one is lost with its node, and the next node gets a new one.

    The replay queue lives on the head, and Ray is left no room to look for: it would take a core for that.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=1)
    try:
        with running(tmp_path, small_policy, "deepspeed.ranks=1", address=cluster.address) as run:
            wait_for(run, lambda state: state.up == 2)
            wait_for_updates(run, 1)
            cluster.remove_node(node, allow_graceful=False)
            wait_for(run, lambda state: state.up == 1 and len(state.phases["gone"]) == 1)
            assert read_state(run).told == "no room on the cluster for rollout actor 2"  # type: ignore[union-attr]
            wait_for_updates(run, 2)
            cluster.add_node(num_cpus=1)
            wait_for(run, lambda state: state.up == 2)
            wait_for_updates(run, 2)
            assert not failed(run)
            log = (tmp_path / "log").read_text(errors="replace")
            assert re.search(r"rollout actor 2 samples, \d+ s after it was added", log)
            assert "the replay queue died" not in log
    finally:
        cluster.shutdown()


def test_the_learners_node_is_lost_and_another_one_joins(small_policy: Path, tmp_path: Path) -> None:
    """Its node alone has room for the rank; on the next one the learner goes on from the checkpoint."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=3)
    settings = ("rollout.actors=1", "deepspeed.ranks=1", "deepspeed.cpus_per_rank=2", "checkpoint.every=1")
    try:
        with running(tmp_path, small_policy, *settings, address=cluster.address) as run:
            wait_for(run, lambda state: state.up == 1)
            wait_for_updates(run, 2)
            before = len(updates(run))
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=3)
            until = time.monotonic() + LIMIT_S
            while "the learner is up again" not in (log := (tmp_path / "log").read_text(errors="replace")):
                assert time.monotonic() < until, log[-3000:]
                time.sleep(0.2)
            wait_for_updates(run, 3)
            lines = [line["update"] for line in updates(run)]
            assert lines == list(range(1, len(lines) + 1))
            assert len(lines) > before
            assert not failed(run)
    finally:
        cluster.shutdown()
