"""A time limit that stands still while the engine takes weights or sleeps: what others do there costs no ticket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
LEAST_WAIT_S = 0.05


class HeldTime:
    """How long nobody could go on, since the beginning."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def hold(self) -> None:
        """Nobody can go on from here on; nothing new where that is so already."""
        if self._since is None:
            self._since = time.monotonic()

    def release(self) -> None:
        """All can go on, whatever held them."""
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody can go on meanwhile; afterwards all can, unless it was so before."""
        before = self._since is not None
        self.hold()
        try:
            yield
        finally:
            if not before:
                self.release()

    async def within(self, limit_s: float, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns. Raises TimeoutError, with the work cancelled, after `limit_s` of its own."""
        task, end = asyncio.create_task(work), self._own_time() + limit_s
        try:
            while (left := end - self._own_time()) > 0:
                done, _ = await asyncio.wait({task}, timeout=max(left, LEAST_WAIT_S))
                if done:
                    return task.result()
            raise TimeoutError
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _own_time(self) -> float:
        return (time.monotonic() if self._since is None else self._since) - self._seconds
