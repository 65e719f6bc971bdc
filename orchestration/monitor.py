"""Entry point: `python -m orchestration.monitor` (`make monitor`): Prometheus and Grafana for the runs on this machine.

Both listen on this machine alone, and end with this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.shown import one_line
from learner.durable import replace_durably
from orchestration.exits import BAD_INPUT, FAILED, fail
from orchestration.grafana import UID

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "monitoring"
PROMETHEUS, GRAFANA = "http://127.0.0.1:9090", "http://127.0.0.1:3000"
READY_S, END_S, LOOK_S = 60.0, 15.0, 0.5
TARGETS = "prom_metrics_service_discovery.json"
STALE_S = 60.0  # a Ray that is at work writes its list every few seconds
_HOMES = ("/usr/share/grafana", "/opt/grafana", "/usr/local/share/grafana", "/opt/homebrew/share/grafana")


class MonitorError(RuntimeError):
    """A server did not come up, or ended."""


@dataclass(frozen=True, slots=True)
class Server:
    """health: answers with status 200 once it is up. log: what it says."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    health: str
    log: Path


def prometheus(data: Path) -> Server | None:
    """None where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        return None
    arguments = (
        f"--config.file={data / 'prometheus.yml'}", f"--storage.tsdb.path={data / 'prometheus'}",
        f"--web.listen-address={PROMETHEUS.removeprefix('http://')}",
    )  # fmt: skip
    return Server("Prometheus", (program, *arguments), {}, f"{PROMETHEUS}/-/ready", data / "prometheus.log")


def grafana(data: Path) -> Server | None:
    """None where it is not installed. Its dashboards are this project's and Ray's."""
    program = shutil.which("grafana") or shutil.which("grafana-server")
    home = program and _home(Path(program))
    if not program or home is None:
        return None
    address, port = GRAFANA.removeprefix("http://").split(":")
    environment = {
        "SESA_DASHBOARDS": str(CONFIG), "RAY_DASHBOARDS": str(data / "ray-dashboards"),
        "GF_PATHS_PROVISIONING": str(CONFIG / "grafana"), "GF_PATHS_DATA": str(data / "grafana"),
        "GF_PATHS_LOGS": str(data / "grafana"), "GF_SERVER_HTTP_ADDR": address, "GF_SERVER_HTTP_PORT": port,
        # Ray's dashboard shows it in a frame, to whoever may see that dashboard.
        "GF_SECURITY_ALLOW_EMBEDDING": "true", "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false", "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }  # fmt: skip
    command = (program, *(("server",) if Path(program).name == "grafana" else ()), f"--homepath={home}")
    return Server("Grafana", command, environment, f"{GRAFANA}/api/health", data / "grafana.log")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    data = arguments.data.expanduser().resolve()
    found, missing = [], []
    for name, make, way in (
        ("Prometheus", prometheus, "apt install prometheus, or https://prometheus.io/download"),
        ("Grafana", grafana, "https://grafana.com/grafana/download"),
    ):
        server = make(data)
        (found.append(server) if server is not None else missing.append(f"{name} is not installed: {way}"))
    for line in missing:
        print(f"missing: {line}")
    if not found:
        return fail("nothing to start; docs/monitoring.md says how to use servers of your own", BAD_INPUT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        data.mkdir(parents=True, exist_ok=True)
        write_targets(data)
        _write_config(data)
        _write_ray_dashboard(data / "ray-dashboards")
        with ExitStack() as stack:
            started = [(server, stack.enter_context(running(server))) for server in found]
            _tell([server.name for server in found])
            _wait_for_an_end(started, data)
    except KeyboardInterrupt:
        return 0
    except (MonitorError, OSError) as error:
        return fail(error, FAILED)
    return 0


@contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """The server, once it answers. Raises MonitorError with the end of its log where it does not within READY_S."""
    if _answers(server.health):
        raise MonitorError(f"something answers at {server.health} already: stop it, or use it as it is")
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            server.command, env=os.environ | server.environment, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + READY_S
            while not _answers(server.health):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MonitorError(f"{server.name} did not come up within {READY_S:g} s: {_last_line(server.log)}")
                time.sleep(LOOK_S)
            yield process
        finally:
            _end(process)


def write_targets(data: Path) -> None:
    """The nodes of every Ray that is at work on this machine, for Prometheus to read.

    Ray's own list, under one name for all, is that of one of them: each Ray puts its own there, in turn.
    """
    found: list[Any] = []
    for path in sorted(Path(os.environ.get("RAY_TMPDIR", "/tmp")).glob(f"ray/session_*/{TARGETS}")):
        with suppress(OSError, ValueError):  # it may be gone, or half written
            if not path.parent.is_symlink() and time.time() - path.stat().st_mtime < STALE_S:
                found += json.loads(path.read_text())
    targets, text = data / "targets.json", json.dumps(found).encode()
    if not targets.exists() or targets.read_bytes() != text:  # it is looked at twice a second
        replace_durably(targets, text)


def _write_config(data: Path) -> None:
    """configs/monitoring/prometheus.yml with its rules where they are, and these targets."""
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str(CONFIG / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["file_sd_configs"][0]["files"] = [str(data / "targets.json")]
    replace_durably(data / "prometheus.yml", yaml.safe_dump(config).encode())


def _wait_for_an_end(started: Sequence[tuple[Server, subprocess.Popen[bytes]]], data: Path) -> None:
    while True:
        write_targets(data)
        for server, process in started:
            if process.poll() is not None:
                raise MonitorError(f"{server.name} ended by itself: {_last_line(server.log)}")
        time.sleep(LOOK_S)


def _tell(names: Sequence[str]) -> None:
    if "Prometheus" in names:
        print(f"Prometheus: {PROMETHEUS}/graph, alerts: {PROMETHEUS}/alerts")
    if "Grafana" in names:
        print(f"Grafana: {GRAFANA}/d/{UID}")
        print("Ray dashboard: its page Metrics shows it, in place of Ray Data's (docs/monitoring.md)")
    print("Ctrl-C ends it", flush=True)


def _write_ray_dashboard(folder: Path) -> None:
    from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_default_grafana_dashboard

    folder.mkdir(exist_ok=True)
    content, _ = generate_default_grafana_dashboard()
    (folder / "ray.json").write_text(content, encoding="utf-8")


def _home(program: Path) -> Path | None:
    """Where Grafana's own files are: in a package's folder, or beside the program of an unpacked archive."""
    places = [program.resolve().parent.parent, *map(Path, _HOMES)]
    return next((place for place in places if (place / "conf" / "defaults.ini").is_file()), None)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):  # nobody there, or somebody who speaks something else
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{one_line(lines[-1], 300) if lines else 'it said nothing'} (all of it: {log})"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
        return
    process.kill()
    process.wait(END_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestration.monitor", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "runs" / ".monitor", help="where they keep theirs (runs/.monitor)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
