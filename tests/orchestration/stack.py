"""The real stack as tests drive it: Ray, rollout actors with their engines, ZeRO-3 ranks, the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.receipt import Receipt
from actors.rollout_actor import RolloutActor
from configs.schema import RunConfig
from learner.rank import LearnerRank
from learner.sync_times import SyncTimes
from orchestration import cluster
from orchestration.learners import Learners
from orchestration.replay_buffer import Taken
from orchestration.replay_queue import ReplayQueue
from orchestration.room import actor_role, learner_role, of_ranks_and_actors, reserve
from orchestration.tickets import training_ticket

SETTINGS: dict[str, Any] = {
    "model": {"max_model_len": 512},
    "sampler": {"name": "sesa", "sketches": 4, "train_on": "both"},
    "grpo": {"drop_zero_signal": False, "importance": {"cap": None}},
    "optim": {"lr": 5e-3, "max_grad_norm": 1e9},
    "deepspeed": {"tokens_per_micro_batch": 2048},
    "cluster": {"dashboard": False, "local_cpus": 8},
}


@dataclass
class Stack:
    """Everything up and connected; `run` drives it from a test."""

    config: RunConfig
    policy: Path
    replay: Any
    actors: list[Any]
    learners: Learners
    version: int = 0

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def awaited() -> Any:
            return await work()

        return asyncio.run(awaited())

    async def sample_batch(self, first: int, count: int) -> tuple[list[Receipt], Any]:
        """Sample tickets on both actors and take their groups from the queue."""
        tickets = [training_ticket(0, first + i, "frozen_lake") for i in range(count)]
        receipts = await asyncio.gather(*(self.sample(i, ticket) for i, ticket in enumerate(tickets)))
        taken, payloads = await self.take(count, self.version, [t.index for t in tickets])
        assert sorted(h.index for h in taken.fresh) == [t.index for t in tickets]
        return list(receipts), payloads

    async def take(self, count: int, version: int, wanted: Sequence[int]) -> tuple[Taken, Any]:
        """Groups of these tickets, and a reference to their messages."""
        taken_ref, payloads = self.replay.take.options(num_returns=2).remote(count, version, wanted)
        taken: Taken = await taken_ref
        return taken, payloads

    async def broadcast(self) -> SyncTimes:
        """The learner's weights to all actors, in the group they are in."""
        return await self.learners.give(dict(enumerate(self.actors)), anew=False)

    async def sample(self, i: int, ticket: Any) -> Receipt:
        receipt: Receipt = await self.actors[i % len(self.actors)].sample.remote(ticket)
        return receipt

    async def update(self, payloads: Any) -> Any:
        sums = await self.learners.update(payloads)
        self.version += 1
        return sums


@contextmanager
def started(settings: dict[str, Any], learner_policy: Path, actor_policy: Path) -> Iterator[Stack]:
    config = RunConfig.model_validate(settings)
    cluster.connect(config)
    try:
        of_rank, of_actor = learner_role(config), actor_role(config)
        rank_rooms, actor_rooms = of_ranks_and_actors(reserve(config))
        remote_queue: Any = ray.remote(ReplayQueue)
        replay = remote_queue.options(name="replay queue", num_cpus=0).remote(config.queue)
        of_ranks = [(config, str(learner_policy), i) for i in range(of_rank.count)]
        of_actors = [(config, str(actor_policy), i, "replay queue") for i in range(of_actor.count)]
        ranks = cluster.spawn(LearnerRank, of_rank, rank_rooms, cluster.learner_env(config), of_ranks)
        actors = cluster.spawn(RolloutActor, of_actor, actor_rooms, cluster.engine_env(config), of_actors)
        stack = Stack(config, learner_policy, replay, actors, Learners(config, ranks))

        async def connect() -> None:
            if config.shares_gpus:  # an engine measures what is free on its GPU while it starts
                await asyncio.gather(*(actor.ready.remote() for actor in actors))
            await stack.learners.start()
            await stack.learners.give(dict(enumerate(actors)), anew=True)

        stack.run(connect)
        yield stack
    finally:
        ray.shutdown()


def assert_engine_and_learner_agree(sums: Any) -> None:
    """The figures every float32 run must meet."""
    assert sums.own_tokens > 100
    assert sums.own_abs_diff / sums.own_tokens <= 1e-5
    assert sums.own_abs_diff_max <= 1e-3
