"""What a user sees of a run: a live view on a terminal, else one plain line an update."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import TextIO

from rich.box import ROUNDED
from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from configs.schema import RunConfig
from configs.shown import redacted
from orchestration.metrics_table import UpdateMetrics

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 84
_PACE_OVER = 20  # updates the time left is judged by


class Console:
    """Shows a run on `stream` (standard output): live where that is a terminal and `observe.console` is on.

    `began`: `time.monotonic()` at the run's start. The live view appears with the first update and stays as it was
    last when closed; text said meanwhile scrolls above it.
    """

    def __init__(self, config: RunConfig, began: float, stream: TextIO | None = None) -> None:
        stream = sys.stdout if stream is None else stream
        self._terminal = Terminal(file=stream, highlight=False, soft_wrap=True)
        able = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        self._live_wanted = config.observe.console and able and self._terminal.encoding.startswith("utf")
        self._live: Live | None = None
        self._updates = config.run.updates
        self._began = began
        self._pace: deque[tuple[int, float]] = deque(maxlen=_PACE_OVER + 1)  # update, time.monotonic()
        self._successes: deque[float] = deque(maxlen=28)
        self._last: UpdateMetrics | None = None

    def say(self, text: str) -> None:
        """One line of text, as it is but for secrets."""
        self._terminal.print(redacted(text), markup=False)

    def update(self, metrics: UpdateMetrics) -> None:
        """Show an update that is done."""
        self._pace.append((metrics.update, time.monotonic()))
        self._successes.append(metrics.success)
        self._last = metrics
        if not self._live_wanted:
            self.say(f"update {metrics.update}/{self._updates}  {_line(metrics)}  left {self._time_left()}")
            return
        if self._live is None:
            self._live = Live(console=self._terminal, get_renderable=self._view, refresh_per_second=2)
            self._live.start()
        self._live.refresh()

    def close(self) -> None:
        """Leave the last view in place and the terminal as it was. May be called again."""
        if self._live is not None:
            self._live.stop()
        self._live, self._live_wanted = None, False

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self) -> Panel | str:
        if self._last is None:
            return ""
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"update {self._last.update}/{self._updates}", style="bold"),
            ProgressBar(self._updates, self._last.update, width=32),
            f"{_duration(time.monotonic() - self._began)} in, {self._time_left()} left",
        )
        return Panel(
            Group(head, "", _figures(self._last, _sparkline(self._successes))),
            box=ROUNDED,
            width=_WIDTH,
            title="training",
        )

    def _time_left(self) -> str:
        """By the pace of the last updates; "?" before there is one."""
        (first, then), (last, now) = self._pace[0], self._pace[-1]
        return _duration((self._updates - last) * (now - then) / (last - first)) if last > first else "?"


def _figures(m: UpdateMetrics, successes: str) -> Table:
    """Four columns: name, figure, name, figure."""
    table = Table.grid(padding=(0, 2))
    for style in ("dim", "", "dim", ""):
        table.add_column(style=style, no_wrap=True)
    table.add_row("reward", _number(m.reward_mean), "actors", f"{_whole(m.rollout_tokens_per_s)} tokens/s")
    table.add_row("success", _number(m.success), "learner", f"{_whole(m.learner_tokens_per_s)} tokens/s")
    table.add_row("", Text(successes, style="green"), "actors idle", _share(m.actor_idle_share))
    table.add_row("loss", _number(m.loss), "learner idle", _share(m.learner_idle_share))
    table.add_row("entropy", _number(m.entropy), "weight sync", f"{m.weight_sync_s:.2f} s")
    table.add_row("policy lag", _lag(m), "queue", f"{m.queue_groups} groups, {_mib(m.queue_bytes)}")
    table.add_row("dropped", f"{m.filtered} no signal, {m.stale} stale, {m.failed} failed")
    return table


def _line(m: UpdateMetrics) -> str:
    return "  ".join(
        (
            f"reward {_number(m.reward_mean)}",
            f"success {_number(m.success)}",
            f"loss {_number(m.loss)}",
            f"tokens/s {_whole(m.rollout_tokens_per_s)} sampled {_whole(m.learner_tokens_per_s)} learned",
            f"lag {_lag(m)}",
            f"queue {m.queue_groups} ({_mib(m.queue_bytes)})",
            f"dropped {m.filtered} no signal {m.stale} stale {m.failed} failed",
            f"sync {m.weight_sync_s:.2f} s",
            f"idle {_share(m.actor_idle_share)} actors {_share(m.learner_idle_share)} learner",
        )
    )


def _sparkline(shares: deque[float]) -> str:
    """One bar a share, 0 to 1."""
    return "".join(_BARS[min(7, int(8 * share))] if math.isfinite(share) else " " for share in shares)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"


def _lag(m: UpdateMetrics) -> str:
    return f"{m.policy_lag_mean:.1f} (max {m.policy_lag_max})"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
