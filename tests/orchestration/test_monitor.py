"""`make monitor`: what is installed is started and ended, what is not is said, and what fails is said in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from orchestration import monitor
from orchestration.cluster import ROOT
from orchestration.exits import BAD_INPUT, FAILED

# Stands in for either server: answers on the port of its environment or arguments.
SERVER = """#!{python}
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
print("arguments", *sys.argv[1:], flush=True)
if os.environ.get("BROKEN"):
    sys.exit("cannot open the data folder")
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): ...
port = next((a.rsplit(":", 1)[1] for a in sys.argv if "listen-address" in a), os.environ.get("GF_SERVER_HTTP_PORT"))
HTTPServer(("127.0.0.1", int(port)), Ready).serve_forever()
"""


def free() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and free ports."""
    programs = tmp_path / "grafana-12" / "bin"
    programs.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(monitor, "PROMETHEUS", free())
    monkeypatch.setattr(monitor, "GRAFANA", free())
    monkeypatch.setattr(monitor, "_HOMES", ())
    return programs


def install(folder: Path, name: str) -> None:
    program = folder / name
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)


def test_what_is_missing_is_said_with_the_way_to_get_it(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor.main(["--data", str(tmp_path / "data")]) == BAD_INPUT
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "missing: Prometheus is not installed: apt install prometheus, or https://prometheus.io/download",
        "missing: Grafana is not installed: https://grafana.com/grafana/download",
    ]
    assert said.err == "error: nothing to start; docs/monitoring.md says how to use servers of your own\n"
    assert not (tmp_path / "data").exists()


def test_both_run_until_they_are_told_to_end(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(installed, "prometheus")
    install(installed, "grafana")
    (installed.parent / "conf").mkdir()
    (installed.parent / "conf" / "defaults.ini").touch()
    children: list[subprocess.Popen[bytes]] = []

    def look(started: list[tuple[monitor.Server, subprocess.Popen[bytes]]], _: Path) -> None:
        children.extend(process for _, process in started)
        assert [process.poll() for process in children] == [None, None]
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor, "_wait_for_an_end", look)
    data = tmp_path / "data"
    assert monitor.main(["--data", str(data)]) == 0
    assert [process.poll() is not None for process in children] == [True, True]
    said = capsys.readouterr().out
    assert f"Grafana: {monitor.GRAFANA}/d/sesa-on-ray" in said
    assert f"Prometheus: {monitor.PROMETHEUS}/graph" in said
    prometheus, grafana = ((data / f"{name}.log").read_text() for name in ("prometheus", "grafana"))
    assert f"--config.file={data}/prometheus.yml" in prometheus
    config = yaml.safe_load((data / "prometheus.yml").read_text())
    assert config["rule_files"] == [f"{ROOT}/configs/monitoring/alerts.yml"]
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [f"{data}/targets.json"]
    assert f"--web.listen-address={monitor.PROMETHEUS.removeprefix('http://')}" in prometheus
    assert grafana.startswith(f"arguments server --homepath={installed.parent}")
    assert "rayDefaultDashboard" in (data / "ray-dashboards" / "ray.json").read_text()


def test_one_that_does_not_come_up_is_told_by_its_last_words(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(installed, "prometheus")
    monkeypatch.setenv("BROKEN", "1")
    assert monitor.main(["--data", str(tmp_path)]) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: Prometheus did not come up within 60 s: cannot open the data folder "
        f"(all of it: {tmp_path / 'prometheus.log'})"
    )


def test_one_that_ends_by_itself_ends_the_other(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(installed, "prometheus")
    tell = monitor._tell

    def kill(names: list[str]) -> None:
        tell(names)
        for line in Path("/proc/self/task").glob("*/children"):
            for pid in line.read_text().split():
                os.kill(int(pid), signal.SIGKILL)

    monkeypatch.setattr(monitor, "_tell", kill)
    assert monitor.main(["--data", str(tmp_path)]) == FAILED
    assert capsys.readouterr().err.startswith("error: Prometheus ended by itself: arguments --config.file=")


def test_the_nodes_of_every_ray_at_work_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    lists = {
        "session_1": '[{"targets": ["a:1"]}]',
        "session_2": '[{"targets": ["b:2"]}]',
        "session_3": "[{",
        "session_4": "[1]",
    }
    for name, text in lists.items():
        folder = tmp_path / "ray" / name
        folder.mkdir(parents=True)
        (folder / monitor.TARGETS).write_text(text)
    long_ago = time.time() - 2 * monitor.STALE_S
    os.utime(tmp_path / "ray" / "session_4" / monitor.TARGETS, (long_ago, long_ago))  # that Ray has ended
    (tmp_path / "ray" / "session_latest").symlink_to(tmp_path / "ray" / "session_2")
    monitor.write_targets(tmp_path)
    assert json.loads((tmp_path / "targets.json").read_text()) == [{"targets": ["a:1"]}, {"targets": ["b:2"]}]


def test_somebody_who_speaks_something_else_is_no_server_of_ours(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def greet() -> None:
            caller, _ = other.accept()
            caller.sendall(b"SSH-2.0-x\r\n")
            caller.close()

        thread = threading.Thread(target=greet)
        thread.start()
        assert not monitor._answers(f"http://127.0.0.1:{other.getsockname()[1]}/-/ready")
        thread.join(10)


def test_a_port_that_is_taken_is_not_taken_for_ours(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(installed, "prometheus")
    server = monitor.prometheus(tmp_path)
    assert server is not None
    with monitor.running(server):
        assert monitor.main(["--data", str(tmp_path / "other")]) == FAILED
    says = f"error: something answers at {monitor.PROMETHEUS}/-/ready already: stop it, or use it as it is\n"
    assert capsys.readouterr().err == says


def test_a_grafana_without_its_files_counts_as_none(installed: Path, tmp_path: Path) -> None:
    install(installed, "grafana")
    assert monitor.grafana(tmp_path) is None


def test_the_command_ends_with_ctrl_c(installed: Path, tmp_path: Path) -> None:
    install(installed, "prometheus")
    program = (
        "import sys; from orchestration import monitor; "
        f"monitor.PROMETHEUS = {monitor.PROMETHEUS!r}; sys.exit(monitor.main(['--data', {str(tmp_path)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "Ctrl-C" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    deadline = time.monotonic() + 5
    while monitor._answers(f"{monitor.PROMETHEUS}/-/ready"):
        assert time.monotonic() < deadline
