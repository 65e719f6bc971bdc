"""A rank's calls under a watchdog: one that is stuck longer than deepspeed.timeout_s ends the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from configs.watchdog import Watchdog

P = ParamSpec("P")
R = TypeVar("R")


class HasWatchdog(Protocol):
    """watchdog: None where nobody looks after the process. limit_s: of one call."""

    watchdog: Watchdog | None
    limit_s: float


Self_ = TypeVar("Self_", bound=HasWatchdog)


def watched(call: Callable[Concatenate[Self_, P], R]) -> Callable[Concatenate[Self_, P], R]:
    """The method, which has to come to its end in time."""

    @wraps(call)
    def within_limit(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.watchdog is None:
            return call(self, *args, **kwargs)
        self.watchdog.feed(self.limit_s)
        try:
            return call(self, *args, **kwargs)
        finally:
            self.watchdog.rest()

    return within_limit
