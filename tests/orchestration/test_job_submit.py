"""`ray job submit` against a Ray head with its dashboard on, as on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.cluster import ROOT
from orchestration.grafana import ROWS, queried
from orchestration.metrics_table import UpdateMetrics, metrics_table
from tests.orchestration.test_grafana import ALERTS
from tests.ports import free_port

pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    dashboard: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head of its own process group, so that only it is stopped."""
    port, dashboard_port, metrics_port = free_port(), free_port(), 28281
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    environment["RAY_metrics_report_interval_ms"] = "500"  # of 10,000: a short run is over before
    # `ray start` wants a token that is there already; on a fresh machine nothing has made one yet.
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    # Socket paths must stay short: Ray's own temporary folder, not the tests'.
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=8", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}", f"--metrics-export-port={metrics_port}",
            f"--object-store-memory={300 << 20}",
            # The agent of a Ray whose driver was killed may still hold the usual port.
            f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{dashboard_port}", process)
        yield Head(f"http://127.0.0.1:{dashboard_port}", f"http://127.0.0.1:{metrics_port}/metrics", environment)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None, "the Ray head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)


def submitted(head: Head, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """The job to its end. A head that is just up refuses jobs until its agent is there, and says to try again."""
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *arguments]
    deadline = time.monotonic() + timeout_s
    while True:
        done = subprocess.run(command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=400)
        if "No available agent to submit job" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


@contextmanager
def scraped(url: str) -> Iterator[dict[str, str]]:
    """What Prometheus would have read of our gauges meanwhile: their last lines, by name."""
    lines, over = dict[str, str](), threading.Event()

    def scrape() -> None:
        while not over.wait(0.3):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
                lines.update({line.split("{")[0]: line for line in text.splitlines() if line.startswith("ray_sesa_")})

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join(30)


@contextmanager
def prometheus(metrics: str, folder: Path) -> Iterator[str | None]:
    """A Prometheus with the repository's rules that reads this head; None where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    config = yaml.safe_load((ROOT / "configs/monitoring/prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(ROOT / "configs/monitoring/alerts.yml")]
    config["scrape_configs"] = [
        {"job_name": "ray", "static_configs": [{"targets": [metrics.split("/")[2]]}]},
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(f"http://{address}/-/ready", process)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def asked(prometheus: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
    ) as answer:
        return json.load(answer)["data"]


def check_dashboard(server: str) -> None:
    """Every panel shows something of the run, except what the run has no value of; the rules are loaded and healthy."""
    may_be_empty = {metric.name for metric in metrics_table(UpdateMetrics) if metric.optional}
    for row in ROWS:
        for panel in row.panels:
            for name, query in zip(panel.names, queried(panel), strict=True):
                found = asked(server, "query", query=f"last_over_time({query.replace('$run', 'job')}[10m])")["result"]
                assert found or name in may_be_empty, f"{panel.title}: nothing at {query}"
    rules = asked(server, "rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) == len(ALERTS)


def test_a_submitted_job_trains(head: Head, small_policy: Path, tmp_path: Path) -> None:
    with prometheus(head.metrics, tmp_path) as server, scraped(head.metrics) as gauges:
        done = submitted(
            head,
            "python", "orchestration/run.py", "--config", "configs/quickstart.yaml", "run.updates=2",
            "grpo.groups_per_update=4", "eval.episodes=16", "eval.samples=4", f"model.path={small_policy}",
            f"run.root={tmp_path}", "run.name=job",
        )  # fmt: skip
        if server is not None:
            check_dashboard(server)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "update 2/2" in done.stdout
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["ledger_balanced"]
    assert summary["tickets"]["trained"] == 8
    # Prometheus sees every figure of an update by its name in the table, and whose it is.
    names = {f"ray_sesa_{metric.name}" for metric in metrics_table(UpdateMetrics) if not metric.optional}
    assert names <= set(gauges)
    assert {"ray_sesa_held_out_success", "ray_sesa_held_out_pass_at_4", "ray_sesa_cache_hit_share"} <= set(gauges)
    for tag in ('run="job"', 'env="frozen_lake"', 'sampler="sesa"'):
        assert tag in gauges["ray_sesa_success"]
