"""Rollout actors without engines: many of them in one Ray process, each called by the fleet like one of its own."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.engine import EngineClock
from actors.outbox import Outbox
from actors.place import Place
from actors.receipt import Receipt
from envs.trajectory import Ticket
from tests.bench.scale.load import Load
from tests.bench.scale.messages import Template, templates


class SimulatedActor:
    """One rollout actor: a ticket takes its drawn time, and its group goes through the real outbox into the queue.

    What is drawn is a function of the load's seed, ticket and attempt. It is busy while it has a ticket that is not
    done, so that waiting for tickets and waiting for room in the queue are idle.
    """

    def __init__(self, load: Load, latency_s: float, made: Sequence[Template], outbox: Outbox) -> None:
        self.version = 0
        self._load, self._latency_s, self._made, self._outbox = load, latency_s, made, outbox
        self._began, self._busy_s, self._busy_since, self._working, self._tokens = time.monotonic(), 0.0, 0.0, 0, 0

    async def sample(self, ticket: Ticket, era: int) -> Receipt:
        draw = random.Random(f"{self._load.seed}/{ticket.index}/{ticket.attempt}")
        template = draw.choice(self._made)
        version = self.version
        await self._work(self._seconds(draw, template.share))
        self._tokens += template.receipt.sampled_tokens
        fate = draw.random()
        if fate < self._load.failed_share:
            return Receipt(ticket, "failed", "drawn to fail", sampled_tokens=template.receipt.sampled_tokens)
        receipt = replace(template.receipt, ticket=ticket)
        if fate < self._load.failed_share + self._load.filtered_share:
            return replace(receipt, state="filtered", cause="no signal: all rewards are equal", has_signal=False)
        return replace(receipt, queue=await self._outbox.put(template.stamped(ticket, version), era))

    def clock(self) -> EngineClock:
        now = time.monotonic()
        busy_s = self._busy_s + (now - self._busy_since if self._working else 0.0)
        return EngineClock(now - self._began, busy_s, 0.0, self._tokens)

    def _seconds(self, draw: random.Random, share: float) -> float:
        """Lognormal in seconds a token, its mean that of the load."""
        sigma = self._load.latency_sigma
        return self._latency_s * share * math.exp(draw.gauss(0.0, sigma) - sigma**2 / 2)

    async def _work(self, seconds: float) -> None:
        if not self._working:
            self._busy_since = time.monotonic()
        self._working += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._working -= 1
            if not self._working:
                self._busy_s += time.monotonic() - self._busy_since


class Host:
    """The Ray actor: `numbers` are those of the rollout actors it plays."""

    def __init__(self, load: Load, actors: int, numbers: Sequence[int], replay: str, limit_s: float) -> None:
        outbox, made = Outbox(ray.get_actor(replay), limit_s), templates(load)
        self._actors = {n: SimulatedActor(load, load.latency_s(actors), made, outbox) for n in numbers}

    async def ready(self, number: int) -> Place:
        return Place.here()

    async def pulse(self, number: int) -> None:
        """A sign of life."""

    async def policy_version(self, number: int) -> int:
        return self._actors[number].version

    async def sample(self, number: int, ticket: Ticket, era: int = 0) -> Receipt:
        return await self._actors[number].sample(ticket, era)

    async def clock(self, number: int) -> EngineClock:
        return self._actors[number].clock()

    async def use_version(self, numbers: Sequence[int], version: int) -> None:
        """The learner's weights have arrived at these."""
        for number in numbers:
            self._actors[number].version = version


class Handle:
    """What the fleet takes for a rollout actor's handle; every call is a real one of its host."""

    def __init__(self, host: Any, number: int) -> None:
        self.host, self.number = host, number

    def __getattr__(self, method: str) -> _Method:
        return _Method(getattr(self.host, method), self.number)


class _Method:
    def __init__(self, method: Any, number: int) -> None:
        self._method, self._number = method, number

    def remote(self, *arguments: Any) -> Any:
        return self._method.remote(self._number, *arguments)
