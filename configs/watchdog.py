"""Ends a process that is stuck, and leaves the stacks of all its threads in a file.

The clock runs in C: it strikes also where a thread never gives the interpreter back. So does what answers TELL: whoever
ends a process from without, which is stuck where no clock of its own sees it, asks for the stacks first.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import time
from pathlib import Path

TELL = signal.SIGUSR1
FED_EVERY_S = 5.0
FEEDS_A_LIMIT = 20  # feeding restarts a thread: seldom enough to cost nothing


class Watchdog:
    """One a process. The stacks are there once it has been stuck for `limit_s` behind the last `feed`, or got TELL."""

    def __init__(self, stacks: Path) -> None:
        stacks.parent.mkdir(parents=True, exist_ok=True)
        self._file = stacks.open("a", encoding="utf-8")
        self._fed, self._limit_s = 0.0, 0.0
        faulthandler.register(TELL, file=self._file)

    def feed(self, limit_s: float) -> None:
        """There is progress; within `limit_s` from now there has to be more, or this process ends with status 1."""
        now = time.monotonic()
        if limit_s != self._limit_s or now - self._fed > self._limit_s / FEEDS_A_LIMIT:
            self._fed, self._limit_s = now, limit_s
            faulthandler.dump_traceback_later(limit_s * (1 + 1 / FEEDS_A_LIMIT), exit=True, file=self._file)

    def rest(self) -> None:
        """Nothing is expected for now."""
        self._limit_s = 0.0
        faulthandler.cancel_dump_traceback_later()

    async def look_after_loop(self, limit_s: float) -> None:
        """Until it is cancelled: the event loop it runs in has to come round within `limit_s`, always."""
        try:
            while True:
                self.feed(limit_s)
                await asyncio.sleep(min(FED_EVERY_S, limit_s / FEEDS_A_LIMIT))
        finally:
            self.rest()
