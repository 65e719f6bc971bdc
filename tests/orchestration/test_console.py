"""The console: a live view on terminals, plain lines elsewhere."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable

import pytest

from configs.schema import ObserveSettings, RunConfig, RunSettings
from orchestration.console import Console
from tests.orchestration.test_metrics import metrics

CONFIG = RunConfig(run=RunSettings(updates=40))


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """An ordinary terminal of 100 columns, whatever the machine's own says."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return FakeTerminal()


def test_elsewhere_than_on_a_terminal_it_is_one_line_an_update(clock: Clock) -> None:
    stream = io.StringIO()
    with Console(CONFIG, 1000.0, stream) as console:
        console.say("policy [small]: made in /a/folder")
        console.update(metrics(1))
        clock.now += 6
        console.update(metrics(2, loss=math.nan))
    said, first, second = stream.getvalue().splitlines()
    assert said == "policy [small]: made in /a/folder"
    assert first == (
        "update 1/40  reward 0.010  success 0.020  loss -0.001  tokens/s 2,500 sampled 9,000 learned  lag 0.5 (max 1)  "
        "queue 3 (3.0 MiB)  dropped 2 no signal 1 stale 0 failed  sync 0.05 s  idle 10% actors 40% learner  left ?"
    )
    assert "loss -  " in second
    assert second.endswith("left 3 min 48 s")


def test_a_long_line_stays_one_line() -> None:
    stream = io.StringIO()
    Console(CONFIG, 0.0, stream).say("word " * 100)
    assert stream.getvalue() == "word " * 100 + "\n"


@pytest.mark.parametrize(("per_update_s", "expected"), [(0.5, "19 s"), (60.0, "38 min 0 s"), (600.0, "6 h 20 min")])
def test_the_time_left_follows_the_pace(clock: Clock, per_update_s: float, expected: str) -> None:
    stream = io.StringIO()
    console = Console(CONFIG, 0.0, stream)
    for update in (1, 2):
        clock.now += per_update_s
        console.update(metrics(update))
    assert stream.getvalue().endswith(f"left {expected}\n")


def test_a_resumed_run_is_judged_by_its_own_pace(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(CONFIG, 0.0, stream)
    for update in (31, 32):
        clock.now += 2
        console.update(metrics(update))
    assert stream.getvalue().endswith("left 16 s\n")


def test_on_a_terminal_it_is_a_view_that_stays(terminal: FakeTerminal) -> None:
    with Console(CONFIG, time.monotonic(), terminal) as console:
        console.say("starting")
        for update in range(1, 41):
            console.update(metrics(update))
        console.say("[a checkpoint]")
    shown = terminal.getvalue()
    for text in ("starting", "update 40/40", "0.400", "0.800", "2,500 tokens/s", "9,000 tokens/s", "3 groups, 3.0 MiB"):
        assert text in shown
    for text in ("80 no signal, 40 stale, 0 failed", "0.05 s", "0.5 (max 1)", "▃▄▄▄▄▄", "[a checkpoint]", "0 s left"):
        assert text in shown
    assert shown.rstrip().endswith(("\x1b[?25h", "╯"))  # the cursor is back


def test_a_narrow_terminal_cuts_and_does_not_wrap(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    with Console(CONFIG, 0.0, terminal) as console:
        console.update(metrics(1))
    lines = [re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", line) for line in terminal.getvalue().splitlines()]
    assert max(map(len, lines)) == 50


def test_a_terminal_without_a_movable_cursor_gets_lines(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(CONFIG, 0.0, terminal) as console:
        console.update(metrics(1))
    assert "╭" not in terminal.getvalue()


@pytest.mark.parametrize("make", [FakeTerminal, io.StringIO])
def test_switched_off_or_elsewhere_nothing_moves_the_cursor(make: Callable[[], io.StringIO]) -> None:
    stream = make()
    config = CONFIG.model_copy(update={"observe": ObserveSettings(console=False)})
    with Console(config, 0.0, stream) as console:
        console.update(metrics(1))
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_the_terminal_is_left_as_it_was_when_a_run_fails(terminal: FakeTerminal) -> None:
    def fail() -> None:
        with console:
            console.update(metrics(1))
            raise KeyboardInterrupt

    console = Console(CONFIG, 0.0, terminal)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "\x1b[?25h" in terminal.getvalue()
    console.close()


def test_closed_it_still_says_what_comes_after(terminal: FakeTerminal) -> None:
    console = Console(CONFIG, 0.0, terminal)
    console.update(metrics(1))
    console.close()
    console.say("report: somewhere")
    console.update(metrics(2))
    assert "report: somewhere" in terminal.getvalue()
    assert "update 2/40  reward" in terminal.getvalue()
