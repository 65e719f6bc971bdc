"""Actors that answer when a test says so, and a dispatcher for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.codec import Header
from envs.trajectory import GroupStats, Ticket
from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.replay_queue import Taken

BATCH = 2


class Fleet:
    """Actors that keep each ticket until `finish` or `fail` is called for it."""

    def __init__(self, actors: int = 1) -> None:
        self.handles: list[Any] = [Handle(self, place) for place in range(actors)]
        self.asked: list[tuple[int, Ticket]] = []  # (place, ticket) of every call
        self._waiting: dict[int, tuple[Ticket, asyncio.Future[Receipt]]] = {}

    @property
    def in_flight(self) -> list[int]:
        return sorted(self._waiting)

    @property
    def indices(self) -> list[int]:
        return [ticket.index for _, ticket in self.asked]

    def ask(self, place: int, ticket: Ticket) -> asyncio.Future[Receipt]:
        self.asked.append((place, ticket))
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.index] = (ticket, future)
        return future

    async def finish(self, *indices: int, state: str = "queued", cause: str = "") -> None:
        """The receipts of these tickets arrive, one after another."""
        for index in indices:
            ticket, future = self._waiting.pop(index)
            stats = GroupStats(env_steps=3)
            future.set_result(Receipt(ticket, state, cause, state == "queued", 8, 2, 1, 4, 2, 2.5, 100, stats))
            await settle()

    async def fail(self, index: int, error: BaseException) -> None:
        self._waiting.pop(index)[1].set_exception(error)
        await settle()


class Handle:
    """`handle.sample.remote(ticket)`, as Ray has it."""

    def __init__(self, fleet: Fleet, place: int) -> None:
        self._fleet, self._place, self.sample = fleet, place, self

    def remote(self, ticket: Ticket) -> asyncio.Future[Receipt]:
        return self._fleet.ask(self._place, ticket)


async def settle() -> None:
    """Give every task its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


def configured(lag: int = 0, updates: int = 10, **rollout: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"updates": updates, "seed": 3},
            "rollout": {"prompts_in_flight": 64, **rollout},
            "queue": {"max_policy_lag": lag, "max_groups": 8, "timeout_s": 5},
            "grpo": {"groups_per_update": BATCH, "max_refill": 2},
        }
    )


@asynccontextmanager
async def dispatching(path: Path, fleet: Fleet, config: RunConfig) -> AsyncIterator[Dispatcher]:
    """A dispatcher that has issued its first tickets; stopped at the end, when its ledger must balance."""
    with Ledger(path / "ledger.sqlite") as ledger:
        dispatcher = Dispatcher(config, fleet.handles, ledger)
        dispatcher.issue()
        await settle()
        yield dispatcher
        await dispatcher.stop()
        counts = ledger.counts()
        counts.check()
        assert (counts.queued, counts.in_flight) == (0, 0)


def counts(dispatcher: Dispatcher) -> dict[str, int]:
    """The states that hold any ticket."""
    return {state: number for state, number in asdict(dispatcher.ledger.counts()).items() if number}


def headers(indices: Sequence[int]) -> tuple[Header, ...]:
    return tuple(Header(i, 0, 0, 10, 8, 8, True) for i in indices)


def taken(*fresh: int, stale: Sequence[int] = ()) -> Taken:
    return Taken(headers(fresh), headers(stale))


async def update(dispatcher: Dispatcher, version: int, *fresh: int) -> None:
    """The learner's part: take a batch, train on it, and give the actors version + 1."""
    dispatcher.book_batch(taken(*fresh))
    dispatcher.book_trained(taken(*fresh))
    dispatcher.advance(version + 1)
    await settle()
