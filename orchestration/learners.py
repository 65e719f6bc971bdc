"""The driver's side of the ZeRO-3 ranks: every call goes to all of them and has a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.place import Place, place_of
from configs.schema import RunConfig
from learner.actors_client import WeightTransferError
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums, add_up
from orchestration.answers import answer_in
from orchestration.cluster import cause_of, end, end_process


class LearnerError(RuntimeError):
    """The learner cannot go on; names the rank or what it was asked."""


class RankError(LearnerError):
    """What a rank raised that lives, as of its disk: of another one it would be the same."""


class DivergedError(LearnerError):
    """The policy has no finite loss any more; the same would come of the same checkpoint."""


class Learners:
    """version: of the policy the ranks hold. Calls that come while another is under way wait for its end."""

    def __init__(self, config: RunConfig, ranks: Sequence[ActorHandle]) -> None:
        self._config, self._ranks = config, ranks
        self._places: list[Place] = []
        self._turn = asyncio.Lock()
        self._ask_engines: Callable[[str], Awaitable[None]] | None = None
        self.version = 0

    def takes_turns_with(self, ask_engines: Callable[[str], Awaitable[None]]) -> None:
        """Engines sleep while the ranks compute. ask_engines: calls a method of all of them (cluster.colocated)."""
        self._ask_engines = ask_engines

    @property
    def count(self) -> int:
        return len(self._ranks)

    async def restart(self, ranks: Sequence[ActorHandle]) -> None:
        """Go on with new processes, which `load` has to follow; the old ones are ended, stopped and stuck ones too."""
        old, places = self._ranks, self._places
        end(old)
        self._ranks, self._places = ranks, []
        killing = [end_process(rank, place) for rank, place in zip(old, places, strict=False)]
        await asyncio.gather(self.start(), *killing)  # side by side: the new ones wait for the room of the old

    async def start(self) -> int:
        """Bring the ranks together; returns the policy's number of parameters."""
        async with self._turn:
            [(address, port)] = await self._within("open a port", self._one(0, "meet"))
            where = [self._one(rank, "__ray_call__", place_of) for rank in range(self.count)]
            self._places = await self._within("say where they are", *where)
            return int((await self._all("start", address, port))[0])

    async def update(self, payloads: ray.ObjectRef) -> UpdateSums:
        """One update on a batch of encoded groups; the batch itself does not pass through the driver."""
        async with self._turn:
            await self._engines("sleep")  # until they get the new weights
            sums = add_up(await self._all("update", payloads))
            self.version += 1
            return sums

    async def score(self, payloads: Sequence[bytes]) -> UpdateSums:
        """Engine against learner log-probs of groups that were sampled under the learner's own version."""
        async with self._turn:
            await self._engines("sleep")
            sums = add_up(await self._all("score", ray.put(list(payloads))))
            await self._engines("wake")
            return sums

    async def give(self, actors: Mapping[int, ActorHandle], *, anew: bool) -> SyncTimes:
        """Send these actors the weights as they are. anew: open the weight group with them first, whoever was in it.

        Raises WeightTransferError with the numbers of actors that are late or fail: the ranks are as they were.
        """
        async with self._turn:
            if anew:
                await self._all("connect", dict(actors))
            times: SyncTimes = (await self._all("broadcast", self.version))[0]
            return times

    async def save(self, folder: str) -> None:
        async with self._turn:
            await self._all("save", folder)

    async def load(self, folder: str) -> None:
        """Go on from what `save` wrote, whatever the number of ranks then."""
        async with self._turn:
            self.version = int((await self._all("load", folder))[0])

    async def export(self, folder: str) -> None:
        async with self._turn:
            await self._all("export", folder)

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """Where ranks and engines share GPUs: the ranks do nothing meanwhile, and leave what is free to others."""
        async with self._turn if self._config.shares_gpus else nullcontext():
            yield

    async def _engines(self, method: str) -> None:
        if self._ask_engines is not None:
            await self._ask_engines(method)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        return await self._within(method, *(self._one(i, method, *arguments) for i in range(self.count)))

    async def _one(self, rank: int, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._ranks[rank], method).remote(*arguments)
        except WeightTransferError:
            raise  # the actors' trouble, not the rank's
        except RayError as error:
            kind = RankError if isinstance(error, RayTaskError) else LearnerError
            raise kind(f"learner rank {rank} failed in {method}: {cause_of(error)}") from error

    async def _within(self, what: str, *calls: Awaitable[Any]) -> list[Any]:
        """What rank 0 and those after it answer, in that order. Raises LearnerError naming the ranks that are late."""
        limit_s = self._config.deepspeed.timeout_s
        answers = [asyncio.ensure_future(call) for call in calls]
        try:
            return await answer_in(limit_s, asyncio.gather(*answers))
        except TimeoutError:
            late = ", ".join(str(rank) for rank, answer in enumerate(answers) if not answer.done())
            raise LearnerError(
                f"the learner's ranks did not {what} within {limit_s:g} s (deepspeed.timeout_s): "
                f"no answer of rank {late}"
            ) from None
