"""Takes the figures of a run while it goes on: CPU time of driver and queue, memory, what the queue holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import psutil

from configs.schema import RunConfig
from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.metrics import read_metrics
from orchestration.queue_client import QueueClient
from orchestration.run_folder import RunFolder
from tests.bench.scale.figures import LAGS, Cpu, Point

EVERY_S = 0.5
FIRST = 2  # updates before which a run is not in its stride


@dataclass(frozen=True, slots=True)
class Reading:
    """updates: done so far. bytes: in the queue, as groups. driver_rss: bytes."""

    updates: int
    groups: int
    bytes: int
    driver_rss: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: `time.monotonic()`, CPU so far, tickets issued so far."""

    at_s: float
    driver: Cpu
    queue: Cpu
    issued: int


class Meters:
    """Measures from entering to leaving; `point` then has the figures.

    Rates and costs are of the time in between in which as much is sampled as can be: not of the first tickets, which
    begin at once, nor of the last ones, when nothing is sampled ahead any more. Of all of a run that is too short.
    """

    def __init__(self, queue: Any, replay: QueueClient, dispatcher: Dispatcher, config: RunConfig) -> None:
        self._queue, self._replay, self._dispatcher, self._config = queue, replay, dispatcher, config
        self._readings: list[Reading] = []
        self._driver = psutil.Process()
        self._queue_rss = 0
        self._last = config.run.updates - 1 - config.queue.max_policy_lag
        self._in_stride: list[Mark] = []

    async def __aenter__(self) -> Meters:
        self._began = await self._mark()
        self._watch = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        self._ended = await self._mark()
        self._queue_rss = await self._asked(memory)

    async def _mark(self) -> Mark:
        queue = await self._asked(cpu)
        return Mark(time.monotonic(), cpu(), queue, self._dispatcher.ledger.counts().issued)

    async def _asked(self, function: Callable[[object], Any]) -> Any:
        """What a function says in the queue's process."""
        async with asyncio.timeout(60):
            return await self._queue.__ray_call__.remote(function)

    async def _look(self) -> None:
        while True:
            depth, updates = await self._replay.depth(), self._dispatcher.version
            self._readings.append(Reading(updates, depth.groups, depth.bytes, self._driver.memory_info().rss))
            due = (FIRST, self._last)[len(self._in_stride) :][:1]
            if self._last > FIRST and due and updates >= due[0]:
                self._in_stride.append(await self._mark())
            await asyncio.sleep(EVERY_S)

    def point(self, actors: int, folder: RunFolder, ledger: Ledger) -> Point:
        counts, lines = ledger.counts(), read_metrics(folder.metrics)
        first, last = self._in_stride if len(self._in_stride) == 2 else (self._began, self._ended)
        wall_s, issued = last.at_s - first.at_s, last.issued - first.issued
        in_stride = lines[FIRST : self._last]
        bytes_a_ticket = self._bytes_a_group() * (counts.trained + counts.stale) / counts.issued

        def us(before: float, after: float) -> float:
            return 1e6 * (after - before) / issued

        def share(name: str) -> float | None:
            return fmean(line[name] for line in in_stride) if in_stride else None

        return Point(
            actors=actors,
            issued=counts.issued,
            trained=counts.trained,
            filtered=counts.filtered,
            stale=counts.stale,
            failed=counts.failed,
            cancelled=counts.cancelled,
            updates=len(lines),
            ledger_balanced=counts.balanced and not counts.queued and not counts.in_flight,
            wall_s=self._ended.at_s - self._began.at_s,
            tickets_per_s=issued / wall_s,
            queue_mb_per_s=bytes_a_ticket * issued / wall_s / 1e6,
            driver_us_per_ticket=us(first.driver.process_s, last.driver.process_s),
            driver_loop_us_per_ticket=us(first.driver.loop_s, last.driver.loop_s),
            driver_cpu_share=(last.driver.loop_s - first.driver.loop_s) / wall_s,
            queue_us_per_ticket=us(first.queue.process_s, last.queue.process_s),
            queue_loop_us_per_ticket=us(first.queue.loop_s, last.queue.loop_s),
            queue_cpu_share=(last.queue.loop_s - first.queue.loop_s) / wall_s,
            queue_groups_mean=fmean(one.groups for one in self._readings),
            queue_groups_max=max(one.groups for one in self._readings),
            queue_mib_max=max(one.bytes for one in self._readings) / 2**20,
            queue_rss_mib=self._queue_rss / 2**20,
            lags={name: sum(line[name] for line in lines) for name in LAGS},
            actor_idle_share=share("actor_idle_share"),
            learner_idle_share=share("learner_idle_share"),
            driver_rss_mib=self._readings[-1].driver_rss / 2**20,
            driver_rss_growth_kib=self._growth(),
        )

    def _bytes_a_group(self) -> float:
        groups = sum(one.groups for one in self._readings)
        return sum(one.bytes for one in self._readings) / groups if groups else 0.0

    def _growth(self) -> float | None:
        """KiB per 10,000 tickets; None of a run too short to say."""
        late = self._readings[len(self._readings) // 4 :]
        tickets = np.array([one.updates * self._config.grpo.groups_per_update for one in late])
        if len(set(tickets)) < 3:
            return None
        return float(np.polyfit(tickets / 1e4, np.array([one.driver_rss / 1024 for one in late]), 1)[0])


def cpu(_: object = None) -> Cpu:
    """Of the process and the thread this is called in; `_`: the actor, where it is called in one."""
    return Cpu(time.process_time(), time.thread_time())


def memory(_: object) -> int:
    return int(psutil.Process().memory_info().rss)
