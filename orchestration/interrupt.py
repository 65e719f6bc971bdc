"""Ctrl-C, and SIGTERM from schedulers: the first one ends training with a checkpoint, another one ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training was asked to end, and did between two updates; says how to go on."""


class Interrupt:
    """`say` hears what a signal leads to. Outside `training` one ends everything at once, by asyncio.CancelledError."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._training = False
        self._asked = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Signals come here meanwhile; they end the task that is running now."""
        loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        before = [signal.getsignal(number) for number in SIGNALS]
        for number in SIGNALS:
            loop.add_signal_handler(number, self.hear)
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                loop.remove_signal_handler(number)
                if handler is not None:  # one that Python knows
                    signal.signal(number, handler)

    @contextmanager
    def training(self) -> Iterator[None]:
        """From here on there is something to keep."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def hear(self) -> None:
        """A signal has come."""
        if self._training and not self.asked:
            self._say("interrupted: the update under way is finished and kept; once more ends the run at once")
            self._asked.set()
        elif self._task is not None:
            self._task.cancel()

    async def unless_asked(self, waiting: Coroutine[Any, Any, Result]) -> Result:
        """Wait for this, which may be given up at any moment. Raises Interrupted as soon as the run is to end."""
        task = asyncio.ensure_future(waiting)
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if self.asked:
                raise Interrupted
            return await task
        finally:
            task.cancel()
            asked.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)
