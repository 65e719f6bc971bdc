"""Answers within a time limit, also where the loop that waits for them stands still."""

from __future__ import annotations

import asyncio
import time
from threading import Timer

import pytest

from orchestration import answers
from orchestration.answers import answer_in


async def word(after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    return "here"


async def test_an_answer_or_an_error_in_time_is_handed_on() -> None:
    async def failing() -> str:
        raise ValueError("no")

    assert await answer_in(5.0, word()) == "here"
    with pytest.raises(ValueError, match=r"^no$"):
        await answer_in(5.0, failing())


async def test_what_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOMENT_S", 0.01)
    call = asyncio.ensure_future(word(60.0))
    with pytest.raises(TimeoutError):
        await answer_in(0.01, call)
    await asyncio.sleep(0)
    assert call.cancelled()


async def test_who_does_not_wait_any_more_lets_the_call_go() -> None:
    call = asyncio.ensure_future(word(60.0))
    waiting = asyncio.create_task(answer_in(60.0, call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert call.cancelled()


async def test_an_answer_that_came_while_the_loop_stood_still_counts() -> None:
    """As Ray's do: from another thread, and through more than one future."""
    loop = asyncio.get_running_loop()
    ray_s: asyncio.Future[str] = loop.create_future()

    async def remote() -> str:
        return await ray_s

    waiting = asyncio.create_task(answer_in(0.1, remote()))
    await asyncio.sleep(0)
    Timer(0.02, loop.call_soon_threadsafe, (ray_s.set_result, "here")).start()
    time.sleep(0.3)  # as for a disk that does not answer
    assert await waiting == "here"
