"""The rollout actors one by one: which of them samples, comes up, or is gone. Pure, but for the handles it carries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.place import Place
from orchestration.room import Room


class Phase(StrEnum):
    """Where an actor is. Only one that is UP gets tickets and weights.

    COMING: its process or its engine starts. READY: its engine is up, it waits for the learner's weights. LEAVING: it
    finishes what it has begun. GONE: it does not come back.
    """

    COMING = "coming"
    READY = "ready"
    UP = "up"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass
class Member:
    """handle: of the Ray actor. room: of its own, None where it is not ours to give back.

    life: how often it has come up. failures: in a row, without a finished ticket between. load: tickets it works on.
    cause: why it was lost last. since: `time.monotonic()` of the last change of phase.
    """

    number: int
    handle: Any
    room: Room | None = None
    phase: Phase = Phase.COMING
    life: int = 0
    failures: int = 0
    load: int = 0
    cause: str = ""
    place: Place | None = None
    since: float = 0.0

    @property
    def name(self) -> str:
        return f"rollout actor {self.number}"


def least_loaded(members: Iterable[Member], most: int) -> Member | None:
    """Of those that are up and have room for another ticket, the one with the fewest; the lowest number of equals."""
    free = [m for m in members if m.phase is Phase.UP and m.load < most]
    return min(free, key=lambda m: (m.load, m.number), default=None)


def in_phase(members: Iterable[Member], *phases: Phase) -> list[Member]:
    return [m for m in members if m.phase in phases]


def in_words(members: Iterable[Member]) -> str:
    """Such as `2 up, 1 coming`; those that have left are not told."""
    counts = {phase: len(in_phase(members, phase)) for phase in Phase}
    told = [f"{count} {phase}" for phase, count in counts.items() if count and phase is not Phase.GONE]
    return ", ".join(told) or "none left"
