"""Who gets the learner's weights: actors that join between updates, and models whose checkpoints hold fused weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from envs.codec import decode_group
from learner.actors_client import WeightTransferError
from learner.sync_times import SyncTimes
from orchestration.tickets import held_out_tickets
from tests.orchestration.stack import SETTINGS, Stack, assert_engine_and_learner_agree, started

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def stack(fused_policies: tuple[Path, Path]) -> Iterator[Stack]:
    """Two ranks and two actors; weights cross in many buckets, and every byte is checked."""
    settings = SETTINGS | {"sync": {"checksum": True, "bucket_mib": 1}, "deepspeed": {"packing": False}}
    with started(settings, *fused_policies) as stack:
        yield stack


async def plain_groups(actor: Any) -> list[bytes]:
    messages: list[bytes] = await actor.sample_held_out.remote(held_out_tickets(8, "frozen_lake"), 2, None)
    return messages


def test_fused_weights_arrive_as_if_loaded_afresh(stack: Stack) -> None:
    """The engines loaded another policy: what they sample now has the learner's log-probs."""

    async def score() -> Any:
        return await stack.learners.score(await plain_groups(stack.actors[0]))

    assert_engine_and_learner_agree(stack.run(score))


def test_a_newcomer_has_the_learners_version_and_weights(stack: Stack) -> None:
    first, newcomer = stack.actors

    async def join() -> tuple[SyncTimes, list[list[bytes]], list[Any]]:
        await stack.learners.give({0: first}, anew=True)
        receipts, payloads = await stack.sample_batch(0, 6)
        assert {r.state for r in receipts} == {"queued"}
        await stack.update(payloads)
        await stack.learners.give({0: first}, anew=False)
        await stack.learners.give({0: first, 1: newcomer}, anew=True)
        times = await stack.broadcast()
        groups = [await plain_groups(actor) for actor in (first, newcomer)]
        return times, groups, [await stack.learners.score(part) for part in groups]

    times, groups, sums = stack.run(join)
    versions = {
        int(version)
        for message in groups[0] + groups[1]
        for trajectory in decode_group(message).trajectories
        for segment in trajectory.segments
        for version in segment.policy_versions
    }
    assert versions == {stack.version} == {1}
    assert groups[0] == groups[1]
    for one in sums:
        assert_engine_and_learner_agree(one)
    assert 0 < times.total_s < 10
    assert min(times.pause_s, times.gather_s, times.load_s) > 0
    assert max(times.pause_s, times.gather_s, times.transfer_s, times.load_s) < times.total_s


def test_the_learner_goes_on_without_an_actor_that_died(stack: Stack) -> None:
    first, dying = stack.actors

    async def lose_one() -> tuple[Any, Any]:
        ray.kill(dying)
        with pytest.raises(WeightTransferError) as caught:
            await stack.broadcast()
        await stack.learners.give({0: first}, anew=True)
        return caught.value, await stack.learners.score(await plain_groups(first))

    error, sums = stack.run(lose_one)
    assert "rollout actor 1 failed to take the weights" in str(error)
    assert error.cause.actors == (1,)
    assert_engine_and_learner_agree(sums)
