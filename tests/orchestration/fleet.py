"""Actors that answer when a test says so, a learner that gives them its version, and a dispatcher for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.engine import EngineClock
from actors.place import Place
from actors.receipt import Receipt
from configs.schema import RunConfig
from envs.codec import Header
from envs.trajectory import GroupStats, Ticket
from learner.sync_times import SyncTimes
from orchestration import answers, start
from orchestration import fleet as fleets
from orchestration.dispatch import Dispatcher
from orchestration.ledger import Ledger
from orchestration.members import Phase
from orchestration.replay_buffer import Taken

BATCH = 2
KILLED = RayActorError(error_msg="The actor died: out of memory")


class Handle:
    """A rollout actor, `handle.method.remote(...)` as Ray has it; it keeps tickets until the test says so.

    pid: of its process, another one after a death. silent: methods that this process does not answer, mute: that none
    does. errors: what the next calls of a method raise. absent: Ray has not started it again yet. deaf: it holds no
    other version than it has, whatever it is given. told: what this process was told, by method.
    """

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet, self.number = fleet, number
        self.pid, self.version = 100 * (number + 1), 0
        self.absent, self.deaf = False, False
        self.silent: set[str] = set()
        self.mute: set[str] = set()
        self.errors: dict[str, list[BaseException]] = {}
        self.told: dict[str, tuple[Any, ...]] = {}
        self.deaths = 0
        self._pending: list[asyncio.Future[Any]] = []

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._call, method))

    def pending(self) -> asyncio.Future[Any]:
        """The answer to a call that ends, at the latest, with the process."""
        self._pending.append(asyncio.get_running_loop().create_future())
        return self._pending[-1]

    def die(self, error: BaseException = KILLED) -> None:
        """The process ends, and Ray starts another one."""
        pending, self._pending = self._pending, []
        for future in pending:
            if not future.done():
                future.set_exception(error)
        self.deaths += 1
        self.pid, self.version, self.told, self.silent = self.pid + 1, 0, {}, set()

    def take(self, version: int) -> None:
        """The learner's weights arrive."""
        if not self.deaf:
            self.version = version

    def _call(self, method: str, *arguments: Any) -> Any:
        if method == "sample":
            return self._fleet.ask(self, *arguments)
        return self._answer(method, *arguments)

    async def _answer(self, method: str, *arguments: Any) -> Any:
        # It does not pause where it answers, so that no time limit of a test depends on the machine's speed.
        if self.absent:
            raise ActorUnavailableError("it is being started again", None)
        if errors := self.errors.get(method):
            raise errors.pop(0)
        if method in self.silent | self.mute:
            await self.pending()
        if method == "ready":
            return Place("10.0.0.1", "node", self.pid, 1000.0 + self.pid)
        if method == "policy_version":
            return self.version
        if method == "clock":
            return EngineClock(10.0, 5.0, 1.0, self.pid)
        self.told[method] = arguments
        return None


class Giving:
    """The learner's side: whoever is named gets its version.

    faults: what the next broadcasts raise, None: nothing. during: what happens in the course of the next ones. resting:
    held while engines may start.
    """

    def __init__(self) -> None:
        self.version = 0
        self.given: list[tuple[list[int], bool]] = []  # (actors, anew) of every broadcast
        self.faults: list[BaseException | None] = []
        self.during: list[Callable[[], Awaitable[None]]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.resting = asyncio.Lock()

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        async with self.resting:
            yield

    async def give(self, actors: Mapping[int, Handle], *, anew: bool) -> SyncTimes:
        self.given.append((sorted(actors), anew))
        await asyncio.sleep(0)
        self.meanwhile()
        if self.during:
            await self.during.pop(0)()
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        for handle in actors.values():
            handle.take(self.version)
        return SyncTimes(total_s=1.0)


class Fleet:
    """Actors that keep each ticket until `finish` or `fail` is called for it, or they die. said: to the console."""

    def __init__(self, actors: int = 1) -> None:
        self.handles: list[Any] = [Handle(self, number) for number in range(actors)]
        self.learners: Any = Giving()
        self.asked: list[tuple[int, Ticket]] = []  # (actor, ticket) of every call
        self.eras: list[int] = []
        self.said: list[str] = []
        self._waiting: dict[int, tuple[Ticket, asyncio.Future[Receipt]]] = {}

    def down(self, config: RunConfig) -> fleets.Fleet:
        """The driver's side of them, before anything was started."""
        return fleets.Fleet(config, self.learners, self.handles, self.said.append)

    def up(self, config: RunConfig) -> fleets.Fleet:
        """The driver's side of them, as if all were up and had the weights."""
        fleet = self.down(config)
        fleet._begun = True
        for member, handle in zip(fleet.members, self.handles, strict=True):
            fleet.roster.move(member, Phase.UP)
            member.life = 1
            member.place = Place("10.0.0.1", "node", handle.pid, 1000.0 + handle.pid)
        return fleet

    @property
    def in_flight(self) -> list[int]:
        return sorted(self._waiting)

    @property
    def indices(self) -> list[int]:
        return [ticket.index for _, ticket in self.asked]

    def ask(self, handle: Handle, ticket: Ticket, era: int) -> asyncio.Future[Receipt]:
        self.asked.append((handle.number, ticket))
        self.eras.append(era)
        future = handle.pending()
        self._waiting[ticket.index] = (ticket, future)
        future.add_done_callback(partial(self._ended, ticket.index))
        return future

    async def finish(self, *indices: int, state: str = "queued", cause: str = "", queue: str = "") -> None:
        """The receipts of these tickets arrive, one after another."""
        for index in indices:
            ticket, future = self._waiting.pop(index)
            stats = GroupStats(env_steps=3)
            receipt = Receipt(
                ticket, state, cause, state == "queued", 8, 2, 1, 4, 2, 2.5, 100, stats, queue=queue, replaced_workers=1
            )
            future.set_result(receipt)
            await settle()

    async def fail(self, index: int, error: BaseException) -> None:
        self._waiting.pop(index)[1].set_exception(error)
        await settle()

    def _ended(self, index: int, future: asyncio.Future[Receipt]) -> None:
        """Nobody waits for it any more, unless it has been asked for again."""
        if (waiting := self._waiting.get(index)) is not None and waiting[1] is future:
            del self._waiting[index]


class Ends:
    """What the driver's side ended: processes that are started again, and actors for good; by their numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[int] = []
        self.actors: list[int] = []
        monkeypatch.setattr(start, "POLL_S", 0.001)
        monkeypatch.setattr(answers, "MOMENT_S", 0.001)
        monkeypatch.setattr(fleets, "end_process", self._end_process)
        monkeypatch.setattr(fleets, "end", self._end)

    async def _end_process(self, handle: Handle, place: Place) -> None:
        self.processes.append(handle.number)
        await asyncio.sleep(0.001)
        if place.pid == handle.pid:
            handle.die()
        await settle()  # the next process is not there before everybody knows of the end of this one

    def _end(self, handles: Sequence[Handle], room: Any = None) -> None:
        self.actors += [handle.number for handle in handles]


def through_ray(error: Exception) -> RayTaskError:
    """The error of a remote call as Ray raises it where it was called from."""
    trace = f"Traceback (most recent call last):\n  File somewhere\n{type(error).__name__}: {error}"
    return RayTaskError("method", trace, error).as_instanceof_cause()


async def settle() -> None:
    """Give every task its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


async def eventually(happened: Callable[[], object], limit_s: float = 20.0) -> None:
    """Wait until it has happened. Raises AssertionError after `limit_s`."""
    until = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        await asyncio.sleep(0.001)


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
    drivers = fleet.up(config)
    with Ledger(path / "ledger.sqlite") as ledger:
        dispatcher = Dispatcher(config, drivers, ledger)
        dispatcher.issue()
        await settle()
        try:
            yield dispatcher
            await dispatcher.stop()
        finally:
            await drivers.close()
        counts = ledger.counts()
        counts.check()
        assert (counts.queued, counts.in_flight) == (0, 0)


def counts(dispatcher: Dispatcher) -> dict[str, int]:
    """The states that hold any ticket."""
    return {state: number for state, number in asdict(dispatcher.ledger.counts()).items() if number}


def headers(indices: Sequence[int]) -> tuple[Header, ...]:
    return tuple(Header(i, 0, 0, 10, 8, 8, True) for i in indices)


def taken(*fresh: int, stale: Sequence[int] = (), queue: str = "") -> Taken:
    return Taken(headers(fresh), headers(stale), queue)


async def update(dispatcher: Dispatcher, version: int, *fresh: int) -> None:
    """The learner's part: take a batch, train on it, and give the actors version + 1."""
    dispatcher.book_batch(taken(*fresh))
    dispatcher.book_trained(taken(*fresh))
    dispatcher.advance(version + 1)
    await settle()
