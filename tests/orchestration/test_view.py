"""The rollout viewer as a reader uses it: served to this machine alone, and in a browser where one is installed."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envs.codec import encode_group
from envs.trajectory import Group, Verdict
from orchestration import rollouts_page, view
from orchestration.exits import BAD_INPUT, FAILED
from orchestration.page import page
from orchestration.rollouts import Rollouts
from tests.browser import CHROMIUM, in_a_browser
from tests.orchestration.test_rollouts import EVIL, group, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    server = view.serving(Rollouts(run), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(10)
    server.server_close()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_page_and_its_samples(port: int, run: Path) -> None:
    status, headers, body = get(port, "/")
    assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
    assert b'"files":["update-000100.msgpack","update-000020.msgpack","update-000010.msgpack"]' in body
    assert b"Content-Security-Policy" in body
    status, _, body = get(port, "/rollouts/update-000100.msgpack")
    assert (status, json.loads(body)["update"]) == (200, 100)


def test_new_samples_are_seen_while_the_run_goes_on(port: int, run: Path) -> None:
    (run / "samples" / "update-000110.msgpack").write_bytes(encode_group(group()))
    assert json.loads(get(port, "/rollouts")[2])["files"][0] == "update-000110.msgpack"


@pytest.mark.parametrize(
    "path", ["/rollouts/..%2fconfig.yaml", "/rollouts/update-000001.msgpack", "/config.yaml", "//x"]
)
def test_what_is_not_there_is_said(port: int, path: str) -> None:
    status, _, body = get(port, path)
    assert status == 404
    assert list(json.loads(body)) == ["error"]


def test_what_goes_wrong_here_is_an_answer_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(Rollouts, "read", fail)
    status, _, body = get(port, "/rollouts/update-000100.msgpack")
    assert (status, json.loads(body)) == (500, {"error": "'a fault of ours'"})


def test_other_names_are_refused(port: int) -> None:
    """A page elsewhere may have its name lead to this machine, and would then read the answers."""
    assert get(port, "/rollouts", host="evil.example")[0] == 403
    assert get(port, "/rollouts", host="localhost")[0] == 200


def test_it_listens_on_this_machine_alone(run: Path) -> None:
    with view.serving(Rollouts(run), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_mistakes_are_said_in_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert view.main([str(tmp_path / "nothing")]) == BAD_INPUT
    assert "no run's folder: it has no config.yaml" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert view.main([str(run), "--port", str(number)]) == FAILED
    says = f"error: --port {number}: Address already in use: choose another one, or 0 for any\n"
    assert capsys.readouterr().err == says


# --- in a browser ----------------------------------------------------------------------------------------------------


def rendered(url: str, folder: Path) -> str:
    """The page's tree once its script has run."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
            "--virtual-time-budget=8000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def text_of(html: str) -> str:
    """What is shown in the tree."""
    return html[html.index('id="rollouts"') : html.index('id="rollouts-data"')]


@in_a_browser
def test_the_viewer_shows_the_tree(port: int, tmp_path: Path) -> None:
    shown = text_of(rendered(f"http://127.0.0.1:{port}/", tmp_path / "browser"))
    for words in (
        "update 100",
        "1. sketches",
        "2. solution",
        "4. branch",
        "from 3, segment 4",
        "1 of 2 branches solved",
    ):
        assert words in shown
    assert shown.index("2. solution") < shown.index("3. solution") < shown.index("4. branch")
    assert "rgb(240 140 40" in shown or "rgba(240, 140, 40" in shown


@in_a_browser
def test_solutions_are_under_their_sketches_however_these_were_drafted(run: Path, tmp_path: Path) -> None:
    """With `history: text` every sketch is a trajectory; one that was drafted again is no solution's."""
    one = group()
    sketches = [replace(one.trajectories[0], segments=one.trajectories[0].segments[:2]) for _ in range(2)]
    again = replace(sketches[0], verdict=Verdict.UNPARSABLE)
    solutions = [replace(one.trajectories[1], sketch=k, answer=f"of {k}") for k in (0, 1)]
    apart = Group(one.ticket, "sesa", (*sketches, again, *solutions), ())
    for file in (run / "samples").glob("*.msgpack"):
        file.write_bytes(encode_group(apart))
    rollouts = Rollouts(run)
    body = rollouts_page.viewer(rollouts.files()[:1], [rollouts.read(rollouts.files()[0])], live=False)
    path = tmp_path / "page.html"
    path.write_text(page("mine", body, rollouts_page.STYLE, rollouts_page.policy(live=False)))
    shown = text_of(rendered(path.as_uri(), tmp_path / "browser"))
    places = [
        shown.index(words) for words in ("1. sketches", "answer of 0", "2. sketches", "answer of 1", "3. sketches")
    ]
    assert places == sorted(places)


@in_a_browser
def test_hostile_text_stays_text(run: Path, tmp_path: Path) -> None:
    for file in (run / "samples").glob("*.msgpack"):
        file.write_bytes(encode_group(group(said=EVIL)))
    rollouts = Rollouts(run)
    groups = [rollouts.read(name) for name in rollouts.files()]
    body = rollouts_page.viewer(rollouts.files(), groups, live=False)
    path = tmp_path / "page.html"
    path.write_text(page("mine", body, rollouts_page.STYLE, rollouts_page.policy(live=False)))
    html = rendered(path.as_uri(), tmp_path / "browser")
    assert "<title>mine</title>" in html
    assert "<img" not in text_of(html)
    assert "&lt;b&gt;U" in text_of(html)  # an answer, which is shown
