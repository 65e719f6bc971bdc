"""`orchestration/run.py` as a user runs it: a whole run on the real stack, its folder, and what bad input says."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from envs.codec import decode_group
from envs.trajectory import Role, Stream
from orchestration.cluster import ROOT

QUICKSTART = "configs/quickstart.yaml"
SMALL = ["eval.episodes=16", "eval.samples=4", "cluster.dashboard=false", "grpo.groups_per_update=6"]
CONTRACT = {
    "env", "sampler", "seed", "updates", "success_before", "success_after", "pass_at_k_before", "pass_at_k_after",
    "distinct_solutions_after", "tickets", "generated_tokens", "rollout_tokens_per_s", "learner_tokens_per_s", "wall_s",
    "weight_sync_s_mean", "learner_idle_fraction", "actor_idle_fraction", "logprob_abs_diff_mean", "policy_lag_max",
}  # fmt: skip


def run(*arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "orchestration/run.py", *arguments],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sesa_run(small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three asynchronous updates of SESA with two actors and two ranks."""
    root = tmp_path_factory.mktemp("runs")
    done = run(
        "--config", QUICKSTART, *SMALL, f"run.root={root}", "run.name=sesa", "run.updates=3", "sampler.name=sesa",
        "sampler.sketches=4", "sampler.train_on=both", f"model.path={small_policy}",
        "queue.max_policy_lag=1", "observe.sample_every=1", "checkpoint.every=2", "checkpoint.keep=1",
        "eval.every=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "update 3/3" in done.stdout
    return root / "sesa"


@pytest.mark.real
@pytest.mark.timeout(400)
class TestWholeRun:
    def test_the_summary_keeps_its_contract(self, sesa_run: Path) -> None:
        summary = json.loads((sesa_run / "summary.json").read_text())
        assert set(summary) >= CONTRACT
        assert (summary["env"], summary["sampler"], summary["updates"]) == ("frozen_lake", "sesa", 3)
        assert list(summary["pass_at_k_after"]) == ["1", "2", "4"]
        assert summary["pass_at_k_after"]["1"] == pytest.approx(summary["success_after"])
        assert summary["policy_lag_max"] == 1
        assert summary["logprob_abs_diff_mean"] <= 1e-5
        assert summary["logprob_abs_diff_max"] <= 1e-3

    def test_every_ticket_has_one_end(self, sesa_run: Path) -> None:
        tickets = json.loads((sesa_run / "summary.json").read_text())["tickets"]
        with closing(sqlite3.connect(sesa_run / "ledger.sqlite")) as ledger:
            states = dict(ledger.execute("SELECT state, COUNT(*) FROM tickets GROUP BY state"))
        assert sum(states.values()) == tickets.pop("issued") == sum(tickets.values())
        assert {state: n for state, n in tickets.items() if n} == states
        # A group that a slow machine lets grow too old leaves its batch short.
        assert 3 * 6 - tickets.get("stale", 0) <= tickets["trained"] <= 3 * 6

    def test_metrics_have_a_line_an_update(self, sesa_run: Path) -> None:
        lines = [json.loads(line) for line in (sesa_run / "metrics.jsonl").read_text().splitlines()]
        assert [line["update"] for line in lines] == [1, 2, 3]
        assert all(line["tokens_trained"] > 0 and line["grad_norm"] > 0 for line in lines)

    def test_evaluations_are_of_the_start_every_few_updates_and_the_end(self, sesa_run: Path) -> None:
        lines = [json.loads(line) for line in (sesa_run / "evaluations.jsonl").read_text().splitlines()]
        trained = [json.loads(line) for line in (sesa_run / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((sesa_run / "summary.json").read_text())
        assert [line["update"] for line in lines] == [0, 2, 3]
        assert [lines[0]["success"], lines[2]["success"]] == [summary["success_before"], summary["success_after"]]
        assert [line["generated_tokens"] for line in lines] == [0, *(trained[i]["generated_tokens"] for i in (1, 2))]

    def test_samples_can_be_read(self, sesa_run: Path) -> None:
        groups = [decode_group(path.read_bytes()) for path in sorted((sesa_run / "samples").glob("*.msgpack"))]
        assert len(groups) == 3
        streams = {credit.stream for group in groups for row in group.rows for credit in row.credits}
        assert streams == {Stream.SOLUTION, Stream.SKETCH}
        assert all(any(s.role is Role.SKETCH for t in group.trajectories for s in t.segments) for group in groups)

    def test_folder_is_whole(self, sesa_run: Path) -> None:
        assert (sesa_run / "config.yaml").is_file()
        assert "<html" in (sesa_run / "report.html").read_text()
        assert [p.name for p in sorted((sesa_run / "checkpoints").glob("step-*"))] == ["step-000003"]
        assert (sesa_run / "checkpoints" / "latest").read_text() == "step-000003\n"
        assert not list(sesa_run.rglob("*.partial"))

    def test_an_export_starts_a_synchronous_run(self, sesa_run: Path, tmp_path: Path) -> None:
        """The export loads in transformers and in vllm; with lag 0 every token is of the learner's own version."""
        done = run(
            "--config", QUICKSTART, *SMALL, f"run.root={tmp_path}", "run.name=again", "run.updates=2",
            "queue.max_policy_lag=0", f"model.path={sesa_run / 'policy'}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
        assert [line["policy_lag_max"] for line in lines] == [0, 0]
        assert all(line["logprob_abs_diff_max"] <= 1e-3 for line in lines)
        first = json.loads((sesa_run / "summary.json").read_text())
        second = json.loads((tmp_path / "again" / "summary.json").read_text())
        assert second["success_before"] == first["success_after"]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class TestBadInput:
    """One clear line, a status other than 0, and no run folder left behind."""

    def refused(self, root: Path, *arguments: str) -> str:
        done = run("--config", QUICKSTART, f"run.root={root}", *arguments, timeout_s=120)
        errors = done.stderr.splitlines()
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert len([line for line in errors if line.startswith("error: ")]) == 1, done.stderr
        assert not root.exists() or not any(root.iterdir())
        return next(line for line in errors if line.startswith("error: "))

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("rollout.actrs=3", "did you mean 'rollout.actors'?"),
            ("rollout.actors=two", "rollout.actors"),
            ("model.path=no/such/folder/here", "model.path"),
            ("run.root=configs/quickstart.yaml", "run.root"),
            ("env={size: 16, random_ends: false}", "env.hole_share 0.2 with env.size 16: none of 2000 maps"),
            ("env={name: sokoban, levels: no/such/levels.txt}", "no/such/levels.txt"),
            ("env={name: path_exploration, targets: 513}", "targets (513) are more than the 512 paths"),
        ],
    )
    def test_names_the_key(self, tmp_path: Path, override: str, says: str) -> None:
        assert says in self.refused(tmp_path / "runs", override)

    def test_all_errors_at_once(self) -> None:
        done = run("--config", QUICKSTART, "rollout.actors=0", "optim.lr=-1", "queue.max_policy_lag=x")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 3

    def test_model_without_chat_template(self, small_policy: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        for file in small_policy.iterdir():
            if "chat_template" not in file.name:
                (bare / file.name).write_bytes(file.read_bytes())
        assert "chat template" in self.refused(tmp_path / "runs", f"model.path={bare}")

    def test_existing_run(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "summary.json").write_text("{}")
        done = run("--config", QUICKSTART, f"run.root={tmp_path}", "run.name=old")
        assert done.returncode == 2
        assert "exists already" in done.stderr
        assert [p.name for p in (tmp_path / "old").iterdir()] == ["summary.json"]

    def test_resuming_nothing(self) -> None:
        done = run("--resume", "runs/no-such-run")
        assert done.returncode == 2
        assert "runs/no-such-run is no run's folder" in done.stderr

    def test_address_that_answers_nothing(self, tmp_path: Path, silent_server: str, small_policy: Path) -> None:
        said = self.refused(
            tmp_path / "runs",
            f"cluster.address={silent_server}",
            "cluster.placement_timeout_s=3",
            f"model.path={small_policy}",
        )
        assert "cluster.address" in said
        assert silent_server in said

    @pytest.mark.real
    def test_more_actors_than_the_cluster_can_place(self, tmp_path: Path, small_policy: Path) -> None:
        began = time.monotonic()
        said = self.refused(
            tmp_path / "runs", "rollout.actors=30", f"model.path={small_policy}", "cluster.dashboard=false"
        )
        assert "32 CPU needed" in said
        assert "16 there" in said
        assert "rollout.actors" in said
        assert time.monotonic() - began < 60


def test_dry_run_prints_config_and_plan() -> None:
    done = run("--config", QUICKSTART, "--dry-run", "rollout.actors=3")
    assert done.returncode == 0
    assert "actors: 3" in done.stdout
    assert "# 3 x rollout actor: 1 CPU, 0 GPU each" in done.stdout
    assert "# memory of each process, estimated" in done.stdout
