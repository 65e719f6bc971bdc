"""The rollout actors one by one: which of them samples, comes up, or is gone. Pure, but for the handles it carries."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.place import Place
from configs.schema import RunConfig
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

    One that is on a roster changes its phase and its load by the roster alone.
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


class Roster:
    """All members by their numbers, and those that are up in the order in which they get tickets.

    The order is kept and not looked for: among 1,024 actors that took 0.2 ms a ticket.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: list[Member] = []
        self._in_turn: list[tuple[int, int]] = []  # (load, number) of those that are up, sorted
        for member in members:
            self.add(member)

    @property
    def up_count(self) -> int:
        return len(self._in_turn)

    def add(self, member: Member) -> None:
        """Its number is how many were there before."""
        self.members.append(member)
        self._enter(member)

    def move(self, member: Member, phase: Phase) -> None:
        self._leave(member)
        member.phase = phase
        self._enter(member)

    def set_load(self, member: Member, load: int) -> None:
        self._leave(member)
        member.load = load
        self._enter(member)

    def least_loaded(self, most: int) -> Member | None:
        """Of those that are up with fewer than `most` tickets, the one with the fewest; the lowest number of equals."""
        if not self._in_turn:
            return None
        load, number = self._in_turn[0]
        return self.members[number] if load < most else None

    def _leave(self, member: Member) -> None:
        if member.phase is Phase.UP:
            del self._in_turn[bisect_left(self._in_turn, (member.load, member.number))]

    def _enter(self, member: Member) -> None:
        if member.phase is Phase.UP:
            insort(self._in_turn, (member.load, member.number))


def in_phase(members: Iterable[Member], *phases: Phase) -> list[Member]:
    return [m for m in members if m.phase in phases]


def in_words(members: Iterable[Member]) -> str:
    """Such as `2 up, 1 coming`; those that have left are not told."""
    counts = {phase: len(in_phase(members, phase)) for phase in Phase}
    told = [f"{count} {phase}" for phase, count in counts.items() if count and phase is not Phase.GONE]
    return ", ".join(told) or "none left"


def answer_limit_s(config: RunConfig) -> float:
    """For an attempt at a ticket: the actor's own limit, the wait for room in the queue, and updates it sleeps through.

    Those are as many as the lag bound lets it live through, deepspeed.timeout_s each at most.
    """
    asleep_s = config.deepspeed.timeout_s * (config.queue.max_policy_lag + 1) if config.cluster.colocated else 0.0
    return config.rollout.ticket_timeout_s + config.queue.timeout_s + asleep_s
