"""A ticket's time limit and the weights that it has to wait for."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from actors.held_time import HeldTime

pytestmark = pytest.mark.timeout(30)


async def long() -> None:
    await asyncio.sleep(20)


async def test_what_the_work_returns_or_raises_comes_through() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def trouble() -> None:
        raise ValueError("boom")

    assert await HeldTime().within(5, answer()) == 7
    with pytest.raises(ValueError, match="boom"):
        await HeldTime().within(5, trouble())


async def test_work_that_takes_too_long_is_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await long()
        finally:
            await asyncio.sleep(0)  # what it has to put away
            ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await HeldTime().within(0.2, work())
    assert 0.2 <= time.monotonic() - began < 5
    assert ended.is_set()


async def test_time_in_which_nobody_could_go_on_does_not_count() -> None:
    """Neither such as began before the work, nor such as goes on at its limit."""
    held = HeldTime()
    with held.held():
        await asyncio.sleep(0.1)
    began = time.monotonic()
    work = asyncio.create_task(held.within(0.2, long()))
    for _ in range(2):
        await asyncio.sleep(0.05)
        with held.held():
            await asyncio.sleep(0.3)
            assert not work.done()
    with pytest.raises(TimeoutError):
        await work
    assert 0.8 <= time.monotonic() - began < 5


async def test_what_holds_it_twice_is_released_once() -> None:
    held = HeldTime()
    work = asyncio.create_task(held.within(0.2, long()))
    await asyncio.sleep(0)
    held.hold()
    await asyncio.sleep(0.2)
    with held.held():
        held.hold()
        await asyncio.sleep(0.2)
    began = time.monotonic()
    held.release()
    with pytest.raises(TimeoutError):
        await work
    assert 0.1 <= time.monotonic() - began < 5


async def test_held_for_long_it_waits_for_the_work_all_the_same() -> None:
    held, go_on = HeldTime(), asyncio.Event()

    async def work() -> str:
        await go_on.wait()
        return "done"

    with held.held():
        answer = asyncio.create_task(held.within(0.01, work()))
        await asyncio.sleep(0.2)
        go_on.set()
        assert await answer == "done"


async def test_who_gives_up_cancels_the_work() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await long()
        cancelled.set()

    task = asyncio.create_task(HeldTime().within(20, work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_a_weight_update_that_fails_holds_nobody_any_longer() -> None:
    held = HeldTime()
    with suppress(RuntimeError), held.held():
        raise RuntimeError("the wire broke")
    with pytest.raises(TimeoutError):
        await held.within(0.1, long())
