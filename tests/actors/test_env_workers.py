"""Environment calls: limits that run while the call does, and a hung call that takes nobody's place."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from actors.env_workers import EnvWorkers


async def test_a_call_returns_or_raises_what_it_does() -> None:
    workers = EnvWorkers(2)
    assert await workers.call(5, max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        await workers.call(5, lambda: 1 // 0)


async def test_waiting_for_a_thread_is_not_counted_against_the_limit() -> None:
    workers = EnvWorkers(1)
    began = time.monotonic()
    await asyncio.gather(*(workers.call(0.3, time.sleep, 0.15) for _ in range(4)))
    assert time.monotonic() - began >= 0.6


async def test_hung_calls_starve_nobody() -> None:
    workers, released = EnvWorkers(2), threading.Event()
    try:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await workers.call(0.05, released.wait, 30)
        assert await workers.call(5, max, 1, 2) == 2
    finally:
        released.set()
