"""The driver's side of the replay queue: every call has a time limit, and is made again where the queue has died.

The queue that Ray starts in its place is empty and has another name, which the caller looks at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from configs.schema import RunConfig
from orchestration.replay_buffer import Depth, QueueError, Taken

STARTED_AGAIN = "the replay queue died and was started again: the groups it held are sampled again"
AGAIN_S = 0.2  # between calls of a queue that Ray is starting again


class QueueClient:
    def __init__(self, config: RunConfig, replay: ActorHandle) -> None:
        self._limit_s = config.queue.timeout_s
        self._replay: Any = replay

    async def take(self, size: int, version: int, wanted: Collection[int]) -> tuple[Taken, ray.ObjectRef]:
        """Up to `size` groups of `wanted` tickets; their messages stay where they are. Raises QueueError."""
        refs: list[ray.ObjectRef] = []

        def call() -> Any:
            refs[:] = self._replay.take.options(num_returns=2).remote(size, version, wanted)
            return refs[0]

        taken: Taken = await self._until_answered("give a batch", call)
        return taken, refs[1]

    async def contents(self) -> tuple[str, list[int]]:
        """The queue's name and the tickets it holds. Raises QueueError."""
        name, indices = await self._until_answered("tell what it holds", self._replay.contents.remote)
        return str(name), list(indices)

    async def copy(self, indices: Sequence[int]) -> list[bytes]:
        """The messages of these tickets, which stay. Raises QueueError, also for one that is not there."""
        return list(await self._until_answered("copy its groups", lambda: self._replay.copy.remote(indices)))

    async def begin(self, era: int, groups: Sequence[bytes] = ()) -> str:
        """Empty it, and put these in; the queue's name. Raises QueueError."""
        name = str(await self._until_answered("begin anew", lambda: self._replay.begin.remote(era)))
        for group in groups:
            await self._until_answered("take a group back", lambda data=group: self._replay.put.remote(data, era))
        return name

    async def depth(self) -> Depth:
        """Raises QueueError."""
        depth: Depth = await self._until_answered("tell its depth", self._replay.depth.remote)
        return depth

    async def _until_answered(self, what: str, call: Any) -> Any:
        try:
            async with asyncio.timeout(self._limit_s):
                while True:
                    try:
                        return await call()
                    except RayActorError:
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise QueueError(f"the replay queue did not {what} within {self._limit_s:g} s (queue.timeout_s)") from None
