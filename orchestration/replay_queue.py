"""Between actors and learner: encoded groups, bounded in number and bytes, none beyond the lag bound when taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import QueueSettings
from envs.codec import Header, read_header
from orchestration.staleness import is_stale


class QueueError(RuntimeError):
    """A group could not be queued or taken; one line that says why."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch holds, and what was dropped on the way as too old."""

    fresh: tuple[Header, ...]
    stale: tuple[Header, ...]


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
        """Raises QueueError for a group that can never fit or a ticket that is there already."""
        self.refuse(header, len(data))
        self._groups[header.index] = (header, data)
        self.bytes += len(data)

    def refuse(self, header: Header, size: int) -> None:
        if size > self._max_bytes:
            raise QueueError(f"ticket {header.index}: a group of {size} bytes is larger than the queue (queue.max_mib)")
        if header.index in self._groups:
            raise QueueError(f"ticket {header.index} is queued already")

    def take(self, count: int, learner_version: int, max_lag: int) -> tuple[Taken, list[bytes]]:
        """Drop what is stale, then take up to `count` groups, in order of policy version and ticket."""
        stale = [h for h, _ in self._groups.values() if is_stale(h.oldest_version, learner_version, max_lag)]
        for header in stale:
            self._remove(header)
        in_order = sorted((h for h, _ in self._groups.values()), key=lambda h: (h.oldest_version, h.index))
        fresh = in_order[:count]
        return Taken(tuple(fresh), tuple(stale)), [self._remove(header) for header in fresh]

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


class ReplayQueue:
    """The buffer as an asyncio Ray actor: `put` waits for room (back-pressure), up to `queue.timeout_s`."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._buffer = ReplayBuffer(settings.max_groups, settings.max_mib << 20)
        self._room = asyncio.Condition()
        self._rejected = 0

    async def put(self, data: bytes) -> None:
        """Raises CodecError for a corrupt message, QueueError when no room came in time; the queue goes on."""
        try:
            header = read_header(data)
            self._buffer.refuse(header, len(data))
        except ValueError:
            self._rejected += 1
            raise
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._room:
                await self._room.wait_for(lambda: self._buffer.has_room(len(data)))
                self._buffer.add(header, data)
        except TimeoutError:
            raise QueueError(
                f"ticket {header.index}: no room in the replay queue within {self._settings.timeout_s:g} s "
                f"({len(self._buffer)} groups, {self._buffer.bytes} bytes): "
                "is the learner stuck, or queue.max_mib too small for a batch?"
            ) from None

    async def take(self, count: int, learner_version: int) -> tuple[Taken, list[bytes]]:
        """Up to `count` groups that are fresh enough for the learner's version, and what was dropped. Does not wait."""
        async with self._room:
            taken = self._buffer.take(count, learner_version, self._settings.max_policy_lag)
            self._room.notify_all()
            return taken

    async def copy(self, indices: Sequence[int]) -> list[bytes]:
        """The messages of these tickets for a checkpoint. Raises QueueError for one that is not there."""
        return self._buffer.copy(indices)

    async def depth(self) -> Depth:
        return Depth(len(self._buffer), self._buffer.bytes, self._rejected)
