"""A secret of the environment in an error's text reaches neither console, ledger, samples, report nor exit line."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from configs.schema import RunConfig
from envs.trajectory import Ticket
from orchestration import compare
from orchestration.console import Console
from orchestration.exits import FAILED, fail
from orchestration.ledger import Ledger, State
from orchestration.policy import PolicyError

SECRET = "9c41d7aa03be5588"


@pytest.fixture(autouse=True)
def secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)


def test_exit_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(f"401 for {SECRET}\nhttps://me:pw@host refused\n\x1b[2J", FAILED) == FAILED
    assert capsys.readouterr().err == (
        "error: 401 for [WANDB_API_KEY]\nerror: https://[...]@host refused\nerror: \\x1b[2J\n"
    )


def test_the_console() -> None:
    stream = io.StringIO()
    with Console(RunConfig(), 0.0, stream) as console:
        console.say(f"warning: [bold]key[/bold] {SECRET}")
    assert stream.getvalue() == "warning: [bold]key[/bold] [WANDB_API_KEY]\n"


def test_the_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.issue(Ticket(0, "x", 0), 0)
        ledger.retry(0, f"boom {SECRET}\n" + "y" * 5000)
        ledger.move([0], State.FAILED, f"boom {SECRET}")
        ledger.issue(Ticket(1, "x", 0), 0)
        ledger.retry(1, f"boom {SECRET}\n" + "y" * 5000)
    for file in tmp_path.iterdir():
        assert SECRET.encode() not in file.read_bytes()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        reasons = [reason for (reason,) in db.execute("SELECT reason FROM tickets ORDER BY ticket")]
    assert reasons[0] == "boom [WANDB_API_KEY]"
    assert reasons[1].startswith(r"boom [WANDB_API_KEY]\nyyy")
    assert len(reasons[1]) == 1000


def test_the_comparison_tells_ends_of_logs_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    compare._say(f"    KeyError: {SECRET}")
    assert "KeyError: [WANDB_API_KEY]" in capsys.readouterr().out


def test_policies(tmp_path: Path) -> None:
    assert str(PolicyError(f"model.path: {SECRET}\n")) == r"model.path: [WANDB_API_KEY]\n"
