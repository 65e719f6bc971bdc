"""A tracker in a thread of its own: what it waits for, a network say, holds nobody up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics

CLOSE_S = 30.0  # for what is still to be sent when the run ends
MOST_WAITING = 1000  # lines


class Tracker(Protocol):
    """Takes the lines of metrics.jsonl and evaluations.jsonl as they are written; in the order of their updates."""

    name: str

    def update(self, line: UpdateMetrics) -> None: ...
    def held_out(self, line: HeldOutMetrics) -> None: ...
    def close(self) -> None: ...


class TrackerThread:
    """make: opens the tracker, in the thread too. What goes wrong there is raised by the next call from here."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._error: Exception | None = None
        # A daemon: one that is stuck does not keep the process.
        self._thread = threading.Thread(target=self._work, args=(make,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def update(self, line: UpdateMetrics) -> None:
        self._put(lambda tracker: tracker.update(line))

    def held_out(self, line: HeldOutMetrics) -> None:
        self._put(lambda tracker: tracker.held_out(line))

    def close(self) -> None:
        """Raises TimeoutError after CLOSE_S, with lines that were not sent."""
        self._put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"it was not done within {CLOSE_S:g} s")
        if self._error is not None:
            raise self._error

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise TimeoutError(f"{MOST_WAITING} lines wait to be taken") from None

    def _work(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception as error:
            self._error = error
