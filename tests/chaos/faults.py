"""The faults a run is put through: what, when, to whom. A schedule is a pure function of its seed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np


class Kind(StrEnum):
    """From within: at a ticket's first attempt, a weight update, a checkpoint. From without: once an update is done."""

    # at a ticket
    EXIT = "exit"  # the actor's process ends while it samples
    POISON = "poison"  # the same at every attempt
    ENGINE_RAISES = "engine raises"
    ENGINE_HANGS = "engine hangs"  # it stops answering but lives
    ENV_RAISES = "environment raises"
    ENV_HANGS = "environment hangs"
    ENV_EATS = "environment eats memory"
    GRADER_HANGS = "grader hangs"  # the process that compares answers is stopped while an action waits for it
    CORRUPT = "corrupt message"
    QUEUED_EXIT = "exit behind the queue"  # the group is queued, and the actor dies before it says so
    # at the first weight update from a version on
    BROADCAST_EXIT = "exit in a broadcast"
    BROADCAST_HALF = "exit half-way in a broadcast"  # behind the first bucket, the second under way
    BROADCAST_RAISES = "broadcast raises"
    # at a rank's part of the first checkpoint from an update on
    DISK_FULL = "disk full"  # no file can grow any more
    # from without
    KILL_ACTOR = "actor killed"
    STOP_ACTOR = "actor stopped"  # its process is stopped: it does not answer and does not die
    SLOW_ACTOR = "actor ten times slower"
    KILL_QUEUE = "queue killed"
    STOP_QUEUE = "queue stopped"
    KILL_RANK = "learner rank killed"
    STOP_RANK = "learner rank stopped"
    KILL_DRIVER = "driver killed"


AT_TICKET = (
    Kind.EXIT, Kind.POISON, Kind.ENGINE_RAISES, Kind.ENGINE_HANGS, Kind.ENV_RAISES, Kind.ENV_HANGS, Kind.ENV_EATS,
    Kind.GRADER_HANGS, Kind.CORRUPT, Kind.QUEUED_EXIT,
)  # fmt: skip
AT_QUEUE = (Kind.CORRUPT, Kind.QUEUED_EXIT)
IN_ENV = (Kind.ENV_RAISES, Kind.ENV_HANGS, Kind.ENV_EATS, Kind.GRADER_HANGS)
AT_BROADCAST = (Kind.BROADCAST_EXIT, Kind.BROADCAST_HALF, Kind.BROADCAST_RAISES)
OF_RANKS = (Kind.KILL_RANK, Kind.STOP_RANK, Kind.DISK_FULL)
FROM_WITHOUT = (
    Kind.KILL_ACTOR, Kind.STOP_ACTOR, Kind.SLOW_ACTOR, Kind.KILL_QUEUE, Kind.KILL_RANK, Kind.STOP_RANK,
    Kind.KILL_DRIVER, Kind.STOP_QUEUE,
)  # fmt: skip
# With one kind more every seed would draw another schedule, and those that were run would count for nothing.
NOT_DRAWN = (Kind.STOP_QUEUE,)


@dataclass(frozen=True, slots=True)
class Fault:
    """at: the ticket's index, the weights' version, or the number of updates done. whom: number of an actor or rank."""

    kind: Kind
    at: int
    whom: int = 0


def schedule(seed: int, updates: int, tickets: int, actors: int, ranks: int) -> list[Fault]:
    """One to four faults of any kind but NOT_DRAWN, at any time of a run of about so many updates and tickets."""
    rng = np.random.default_rng(seed)
    kinds = [*AT_TICKET, *AT_BROADCAST, Kind.DISK_FULL, *(kind for kind in FROM_WITHOUT if kind not in NOT_DRAWN)]
    return [_drawn(rng, kinds, updates, tickets, actors, ranks) for _ in range(int(rng.integers(1, 5)))]


def _drawn(rng: np.random.Generator, kinds: list[Kind], updates: int, tickets: int, actors: int, ranks: int) -> Fault:
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind in AT_TICKET:
        return Fault(kind, int(rng.integers(tickets)))
    whom = int(rng.integers(ranks if kind in OF_RANKS else actors))
    # After the last update there is no going on without its checkpoint.
    return Fault(kind, int(rng.integers(1, updates - 1 if kind is Kind.DISK_FULL else updates)), whom)


def write(faults: list[Fault], path: Path) -> None:
    path.write_text(json.dumps([asdict(fault) for fault in faults]))


def read(path: Path) -> list[Fault]:
    return [Fault(Kind(one["kind"]), one["at"], one["whom"]) for one in json.loads(path.read_text())]
