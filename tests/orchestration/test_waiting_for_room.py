"""The queue as the run spawns it, on Ray: it answers however many groups wait for room in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from configs.schema import RunConfig
from envs.codec import encode_group
from orchestration.cluster import connect, spawn_beside_driver
from orchestration.replay_queue import ReplayQueue
from tests.builders import parallel_group

WAITING = 1100  # more than the calls that Ray lets an actor work on at once, unless it is told otherwise


@pytest.mark.real
@pytest.mark.slow
def test_groups_that_wait_for_room_do_not_keep_out_the_call_that_makes_it() -> None:
    config = RunConfig.model_validate(
        {
            "queue": {"max_groups": 1, "timeout_s": 60},
            "grpo": {"groups_per_update": 1},
            "cluster": {"dashboard": False, "object_store_mib": 80, "local_cpus": 1},
        }
    )
    connect(config)
    try:
        asyncio.run(_take_from_a_full_queue(spawn_beside_driver(ReplayQueue, "replay queue", config.queue)))
    finally:
        ray.shutdown()


async def _take_from_a_full_queue(queue: Any) -> None:
    calls = [queue.put.remote(encode_group(parallel_group(1.0, 0.0, index=i))) for i in range(WAITING)]
    puts = [asyncio.ensure_future(call) for call in calls]
    async with asyncio.timeout(60):
        await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        for left in range(WAITING, WAITING - 3, -1):
            taken, _ = await queue.take.remote(1, 0, range(WAITING))
            assert len(taken.fresh) == 1
            while sum(put.done() for put in puts) <= WAITING - left + 1:  # another one has got the room
                await asyncio.sleep(0.01)
    for put in puts:
        put.cancel()
