"""The actor's side of the replay queue: a group is put in once, also where the queue dies meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError

AGAIN_S = 0.2  # between calls of a queue that Ray is starting again
GRACE_S = 5.0  # the queue itself says after queue.timeout_s that it has no room


class OutboxError(RuntimeError):
    """A group could not be put into the replay queue."""


class Outbox:
    """limit_s: until a group is in the queue; the queue's own wait for room is as long."""

    def __init__(self, replay: Any, limit_s: float) -> None:
        self._replay, self._limit_s = replay, limit_s

    async def put(self, data: bytes, era: int) -> str:
        """The name of the queue that has the group. Raises what the queue raises, RayActorError when it is gone, and
        OutboxError when it says nothing.

        Made again where an answer is lost: of a ticket that is there already the queue keeps the group it has.
        """
        until = asyncio.get_running_loop().time() + self._limit_s
        try:
            async with asyncio.timeout(self._limit_s + GRACE_S):
                while True:
                    try:
                        name: str = await self._replay.put.remote(data, era)
                        return name
                    except RayActorError:
                        if asyncio.get_running_loop().time() > until:
                            raise
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise OutboxError(f"the replay queue gave no answer within {self._limit_s:g} s (queue.timeout_s)") from None
