"""Between actors and learner: encoded groups, bounded in number and bytes, none beyond the lag bound when taken."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from configs.schema import QueueSettings
from configs.watchdog import Watchdog
from envs.codec import read_header
from orchestration.replay_buffer import Depth, QueueError, ReplayBuffer, Taken


class ReplayQueue:
    """The buffer as an asyncio Ray actor: `put` waits for room (back-pressure), up to `queue.timeout_s`.

    One that Ray starts again is empty and has another name, by which others find out. stacks: for those of a stuck one.
    """

    def __init__(self, settings: QueueSettings, stacks: str = "") -> None:
        self._watchdog = Watchdog(Path(stacks) / "replay-queue.txt") if stacks else None
        self._settings, self._name, self._era = settings, uuid4().hex, 0
        self._buffer = ReplayBuffer(settings.max_groups, settings.max_mib << 20)
        self._room = asyncio.Condition()
        self._rejected = 0

    async def put(self, data: bytes, era: int = 0) -> str:
        """The queue's name, once the group is in it. Raises CodecError for a corrupt message; the queue goes on.

        Raises QueueError when no room came in time, or the run was taken back since `era`.
        """
        try:
            header = read_header(data)
            self._buffer.refuse(header, len(data))
        except ValueError:
            self._rejected += 1
            raise
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._room:
                await self._room.wait_for(lambda: header.index in self._buffer or self._buffer.has_room(len(data)))
                if era < self._era:
                    raise QueueError(f"ticket {header.index}: sampled before the run was taken back to a checkpoint")
                self._era = era
                self._buffer.add(header, data)
                return self._name
        except TimeoutError:
            raise QueueError(
                f"ticket {header.index}: no room in the replay queue within {self._settings.timeout_s:g} s "
                f"({len(self._buffer)} groups, {self._buffer.bytes} bytes): "
                "is the learner stuck, or queue.max_mib too small for a batch?"
            ) from None

    async def take(self, count: int, learner_version: int, wanted: Collection[int]) -> tuple[Taken, list[bytes]]:
        """Up to `count` groups of `wanted` tickets, and what was too old for the learner's version. Does not wait."""
        async with self._room:
            taken, payloads = self._buffer.take(count, learner_version, self._settings.max_policy_lag, wanted)
            self._room.notify_all()
            return replace(taken, queue=self._name), payloads

    async def contents(self) -> tuple[str, list[int]]:
        """The queue's name and the tickets whose groups are in it."""
        return self._name, self._buffer.indices()

    async def begin(self, era: int) -> str:
        """Empty it for a run that was taken back to a checkpoint; the queue's name."""
        async with self._room:
            self._era = era
            self._buffer = ReplayBuffer(self._settings.max_groups, self._settings.max_mib << 20)
            self._room.notify_all()  # those who wait with a group of an earlier era find out
        return self._name

    async def copy(self, indices: Sequence[int]) -> list[bytes]:
        """The messages of these tickets for a checkpoint. Raises QueueError for one that is not there."""
        return self._buffer.copy(indices)

    async def depth(self) -> Depth:
        return Depth(len(self._buffer), self._buffer.bytes, self._rejected)
