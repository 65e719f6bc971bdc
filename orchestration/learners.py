"""The driver's side of the ZeRO-3 ranks: every call goes to all of them and has a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from configs.schema import RunConfig
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums, add_up
from orchestration.cluster import cause_of


class LearnerError(RuntimeError):
    """The learner cannot go on; names the rank or what it was asked."""


class Learners:
    def __init__(self, config: RunConfig, ranks: Sequence[ActorHandle]) -> None:
        self._config, self._ranks = config, ranks
        self._version = 0

    @property
    def count(self) -> int:
        return len(self._ranks)

    async def start(self) -> int:
        """Bring the ranks together; returns the policy's number of parameters."""
        address, port = await self._within("find a port", self._one(0, "address"))
        return int((await self._all("start", address, port))[0])

    async def connect(self, actors: Sequence[ActorHandle]) -> None:
        """Open the weight group with these actors, whoever was in it before, and send them the weights as they are."""
        address, port = await self._within("find a port", self._one(0, "address"))
        await self._all("connect", list(actors), address, port)
        await self.broadcast()

    async def update(self, payloads: ray.ObjectRef) -> UpdateSums:
        """One update on a batch of encoded groups; the batch itself does not pass through the driver."""
        sums = add_up(await self._all("update", payloads))
        self._version += 1
        return sums

    async def score(self, payloads: Sequence[bytes]) -> UpdateSums:
        """Engine against learner log-probs of groups that were sampled under the learner's own version."""
        return add_up(await self._all("score", ray.put(list(payloads))))

    async def broadcast(self) -> SyncTimes:
        """Give every actor the learner's weights."""
        times: SyncTimes = (await self._all("broadcast", self._version))[0]
        return times

    async def save(self, folder: str) -> None:
        await self._all("save", folder)

    async def load(self, folder: str) -> None:
        """Go on from what `save` wrote, whatever the number of ranks then."""
        self._version = int((await self._all("load", folder))[0])

    async def export(self, folder: str) -> None:
        await self._all("export", folder)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [self._one(i, method, *arguments) for i in range(self.count)]
        return list(await self._within(method, asyncio.gather(*calls)))

    async def _one(self, rank: int, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._ranks[rank], method).remote(*arguments)
        except RayError as error:
            raise LearnerError(f"learner rank {rank} failed in {method}: {cause_of(error)}") from error

    async def _within(self, what: str, call: Awaitable[Any]) -> Any:
        limit_s = self._config.deepspeed.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError:
            raise LearnerError(
                f"the learner's ranks did not {what} within {limit_s:g} s (deepspeed.timeout_s)"
            ) from None
