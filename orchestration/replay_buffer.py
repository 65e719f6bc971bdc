"""What the replay queue holds: groups bounded in number and bytes, one a ticket, oldest policy version out first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from envs.codec import Header
from orchestration.staleness import is_stale


class QueueError(RuntimeError):
    """A group could not be queued or taken; one line that says why."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch holds, and what was dropped on the way as too old. queue: the name of the queue it was in."""

    fresh: tuple[Header, ...]
    stale: tuple[Header, ...]
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Depth:
    groups: int
    bytes: int
    rejected: int


class ReplayBuffer:
    """The queue's contents, without waiting: a group of a ticket at most once, oldest policy version out first."""

    def __init__(self, max_groups: int, max_bytes: int) -> None:
        self._max_groups, self._max_bytes = max_groups, max_bytes
        self._groups: dict[int, tuple[Header, bytes]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._groups)

    def has_room(self, size: int) -> bool:
        return len(self._groups) < self._max_groups and self.bytes + size <= self._max_bytes

    def add(self, header: Header, data: bytes) -> None:
        """Raises QueueError for a group that can never fit. Of a ticket that is there already the first group stays."""
        self.refuse(header, len(data))
        if header.index not in self._groups:
            self._groups[header.index] = (header, data)
            self.bytes += len(data)

    def __contains__(self, index: int) -> bool:
        return index in self._groups

    def refuse(self, header: Header, size: int) -> None:
        if size > self._max_bytes:
            raise QueueError(f"ticket {header.index}: a group of {size} bytes is larger than the queue (queue.max_mib)")

    def take(
        self, count: int, learner_version: int, max_lag: int, wanted: Collection[int]
    ) -> tuple[Taken, list[bytes]]:
        """Drop what nobody wants and what is stale, then take up to `count` groups, by policy version and ticket.

        wanted: tickets that have no end yet. A group of another is one that was sampled twice, as its actor died
        between queueing it and saying so.
        """
        for header in [h for h, _ in self._groups.values() if h.index not in wanted]:
            self._remove(header)
        stale = [h for h, _ in self._groups.values() if is_stale(h.oldest_version, learner_version, max_lag)]
        for header in stale:
            self._remove(header)
        in_order = sorted((h for h, _ in self._groups.values()), key=lambda h: (h.oldest_version, h.index))
        fresh = in_order[:count]
        return Taken(tuple(fresh), tuple(stale)), [self._remove(header) for header in fresh]

    def indices(self) -> list[int]:
        return sorted(self._groups)

    def copy(self, indices: Sequence[int]) -> list[bytes]:
        """The messages of these tickets, which stay. Raises QueueError for one that is not there."""
        missing = [index for index in indices if index not in self._groups]
        if missing:
            raise QueueError(f"ticket {missing[0]} is queued in the ledger but not in the replay queue")
        return [self._groups[index][1] for index in indices]

    def _remove(self, header: Header) -> bytes:
        _, data = self._groups.pop(header.index)
        self.bytes -= len(data)
        return data
