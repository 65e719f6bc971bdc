"""Waits for an answer for so long and no longer, by a clock that may have stood still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Answer = TypeVar("Answer")

MOMENT_S = 1.0


async def answer_in(limit_s: float, call: Awaitable[Answer]) -> Answer:
    """What a call returns or raises. Raises TimeoutError after limit_s, with the call given up.

    An answer that is there by then counts, however late: a driver that was stopped for a while, or whose disk was, must
    not take all that was answered meanwhile for unanswered. So it gets a moment more, in which the loop runs.
    """
    task = asyncio.ensure_future(call)
    try:
        for seconds in (limit_s, MOMENT_S):
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
