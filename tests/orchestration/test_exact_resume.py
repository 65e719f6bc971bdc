"""Whole runs, killed and resumed, against runs that were left alone, and against a loop written by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from orchestration.cluster import ROOT
from orchestration.tickets import training_ticket
from tests.orchestration.stack import Stack, started

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

UPDATES = 10
SMALL = [
    "eval.episodes=2", "eval.samples=1", "cluster.dashboard=false", "observe.sample_every=0",
    "sampler={name: sesa, sketches: 2, train_on: both}", "rollout.tokens_per_turn=32",
    "grpo.groups_per_update=4", "grpo.max_refill=2", f"run.updates={UPDATES}", "checkpoint.every=5",
]  # fmt: skip
LIMIT_S = 240
# Figures that follow from seeds alone when nothing is sampled ahead.
EXACT = ("update", "loss", "grad_norm", "success", "groups", "tokens_trained", "generated_tokens", "filtered")


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "orchestration/run.py", *arguments],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(*arguments: str) -> str:
    """What a run says that goes through to its end."""
    process = command(*arguments)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    return out


def fresh(root: Path, name: str, policy: Path, *more: str) -> list[str]:
    return ["--config", "configs/quickstart.yaml", *SMALL, f"run.root={root}", f"run.name={name}",
            f"model.path={policy}", *more]  # fmt: skip


def killed(folder: Path, after: int, *arguments: str) -> None:
    """Start a run and kill its driver, hard, once `after` updates are recorded."""
    process = command(*arguments)
    ends = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        if (folder / "metrics.jsonl").exists() and len(lines(folder)) >= after:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err[-2000:]


def lines(folder: Path) -> list[dict[str, Any]]:
    whole = [line for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def ledger(folder: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return db.execute(
            "SELECT ticket, env, seed, attempts, state, reason, policy_version_at_issue FROM tickets ORDER BY ticket"
        ).fetchall()


def assert_every_group_counts_once(folder: Path) -> None:
    """What the updates say they trained is what the ledger says, and every ticket has one end."""
    tickets = json.loads((folder / "summary.json").read_text())["tickets"]
    states = [row[4] for row in ledger(folder)]
    assert tickets["issued"] == len(states) == sum(n for state, n in tickets.items() if state != "issued")
    assert states.count("trained") == sum(line["groups"] for line in lines(folder))
    assert [line["update"] for line in lines(folder)] == list(range(1, len(lines(folder)) + 1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def straight(root: Path, small_policy: Path) -> Path:
    """Ten updates without lag, two actors, two ranks."""
    finished(*fresh(root, "straight", small_policy, "queue.max_policy_lag=0"))
    return root / "straight"


def test_a_killed_run_ends_like_one_left_alone(straight: Path, root: Path, small_policy: Path) -> None:
    """Killed after update 7, resumed from 5 with one actor less: the same weights, bit for bit, and the same ledger."""
    folder = root / "killed"
    killed(folder, 7, *fresh(root, "killed", small_policy, "queue.max_policy_lag=0"))
    said = finished("--resume", str(folder), "rollout.actors=1")
    assert "restored: 5 updates" in said
    assert "lost: updates 6 to " in said
    assert (folder / "policy" / "model.safetensors").read_bytes() == (
        straight / "policy" / "model.safetensors"
    ).read_bytes()
    assert ledger(folder) == ledger(straight)
    assert {"trained", "filtered"} <= {row[4] for row in ledger(folder)}
    assert [[line[key] for key in EXACT] for line in lines(folder)] == [
        [line[key] for key in EXACT] for line in lines(straight)
    ]
    first, again = (json.loads((f / "summary.json").read_text()) for f in (straight, folder))
    for key in ("success_before", "success_after", "tickets", "generated_tokens", "updates"):
        assert first[key] == again[key], key
    assert_every_group_counts_once(folder)


def test_without_lag_a_run_is_the_synchronous_loop(straight: Path, small_policy: Path, tmp_path: Path) -> None:
    """One ticket after another, then an update, then a broadcast: the same weights, bit for bit."""
    config = load_config(straight / "config.yaml", ())
    settings = config.model_dump(mode="json")
    batch, most = config.grpo.groups_per_update, config.grpo.groups_per_update * config.grpo.max_refill
    fates: list[tuple[int, str]] = []

    async def loop(stack: Stack) -> None:
        for version in range(UPDATES):
            accepted, asked = 0, 0
            while accepted < batch and not (accepted and asked % most == 0):
                ticket = training_ticket(config.run.seed, len(fates), config.env.name)
                receipt = await stack.sample(len(fates), ticket)
                fates.append((ticket.index, receipt.state))
                accepted, asked = accepted + (receipt.state == "queued"), asked + 1
            taken, payloads = await stack.take(batch, version, range(len(fates)))
            assert len(taken.fresh) == accepted
            await stack.update(payloads)
            await stack.broadcast()
        await stack.learners.export(str(tmp_path / "policy"))

    with started(settings, small_policy, small_policy) as stack:
        stack.run(lambda: loop(stack))
    exported = (tmp_path / "policy" / "model.safetensors").read_bytes()
    assert exported == (straight / "policy" / "model.safetensors").read_bytes()
    ended = {"queued": "trained", "filtered": "filtered"}
    assert [(row[0], row[4]) for row in ledger(straight)] == [(index, ended[state]) for index, state in fates]


def test_a_finished_run_goes_on_with_three_ranks(straight: Path, root: Path) -> None:
    folder = root / "longer"
    shutil.copytree(straight, folder)
    said = finished("--resume", str(folder), f"run.updates={UPDATES + 1}", "deepspeed.ranks=3", "rollout.actors=1")
    assert f"restored: {UPDATES} updates" in said
    assert "lost: nothing" in said
    assert lines(folder)[:UPDATES] == lines(straight)
    assert ledger(folder)[: len(ledger(straight))] == ledger(straight)
    assert_every_group_counts_once(folder)


def test_with_lag_no_ticket_is_lost_or_trained_twice(root: Path, small_policy: Path) -> None:
    """Two updates ahead, a checkpoint every second update, killed, resumed with one rank."""
    folder = root / "ahead"
    ahead = ("queue.max_policy_lag=2", "checkpoint.every=2", "rollout.actors=1")
    killed(folder, 5, *fresh(root, "ahead", small_policy, *ahead))
    said = finished("--resume", str(folder), "deepspeed.ranks=1", "run.updates=8")
    assert "1 ZeRO-3 ranks" in said
    assert_every_group_counts_once(folder)
    assert _in_flight(said) + _queued(said) > 0
    assert len(lines(folder)) == 8


def _in_flight(said: str) -> int:
    [line] = [line for line in said.splitlines() if line.startswith("issued again: ")]
    return int(line.split()[2])


def _queued(said: str) -> int:
    [line] = [line for line in said.splitlines() if line.startswith("restored: ")]
    return int(line.split(", ")[-1].split()[0])


def test_an_interrupted_run_ends_like_one_left_alone(straight: Path, root: Path, small_policy: Path) -> None:
    """Ctrl-C behind update 6, in the middle of 7: that one is finished and kept; the rest is as it would have been."""
    folder = root / "interrupted"
    process = command(*fresh(root, "interrupted", small_policy, "queue.max_policy_lag=0"))
    ends = time.monotonic() + LIMIT_S
    while not ((folder / "metrics.jsonl").exists() and len(lines(folder)) >= 6):
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    done = len(lines(folder))
    assert done in (6, 7)
    assert "interrupted: the update under way is finished and kept" in out
    assert f"error: interrupted after update {done}; go on with: python orchestration/run.py --resume {folder}" in err
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{done:06d}\n"
    finished("--resume", str(folder))
    exact = [[{key: line[key] for key in EXACT} for line in lines(run)] for run in (straight, folder)]
    assert exact[0] == exact[1]
    assert_every_group_counts_once(folder)
