"""Environment calls off the event loop: a few at a time, each with its own time limit, a hung one starving no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class EnvWorkers:
    """`count` threads. The limit of a call runs while the call does, not while it waits for a thread."""

    def __init__(self, count: int = 8) -> None:
        self._count = count
        self._places = asyncio.Semaphore(count)
        self._threads = self._new_threads()

    async def call(self, limit_s: float, function: Callable[..., T], *arguments: Any) -> T:
        """Raises TimeoutError when the call takes longer than `limit_s`, else whatever it raises."""
        async with self._places:
            running = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
            done, _ = await asyncio.wait([running], timeout=limit_s)
            if not done:
                # A thread cannot be stopped: the hung one is left behind with its pool, the others finish there.
                running.cancel()
                self._threads = self._new_threads()
                raise TimeoutError
            return running.result()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, thread_name_prefix="environment")
