"""Weights between the learner and engines on CUDA devices: NCCL, an engine in parts, and one that sleeps on its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.tickets import held_out_tickets
from tests.learner.ranks import tiny_policy
from tests.orchestration.stack import SETTINGS, Stack, started

# Ids of the byte tokenizer, and heads that kernels have.
SHAPE = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 512}
pytestmark = [pytest.mark.gpu, pytest.mark.real, pytest.mark.timeout(580)]


def needs(gpus: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.cuda.device_count() < gpus, reason=f"needs {gpus} CUDA device(s)")


@contextmanager
def on_gpus(folder: Path, per_actor: float = 1.0, parts: int = 1, **more: dict[str, Any]) -> Iterator[Stack]:
    """A rank and an engine that loaded another policy than the rank; weights cross in many buckets."""
    own, other = (tiny_policy(folder / str(seed), seed, **SHAPE) for seed in (1, 2))
    groups: dict[str, dict[str, Any]] = {
        "model": {"dtype": "bfloat16"},
        "rollout": {
            "actors": 1, "gpus_per_actor": per_actor, "tensor_parallel": parts, "gpu_memory_share": 0.3,
            "cuda_graphs": False,
        },
        "deepspeed": {"ranks": 1, "gpus_per_rank": 1.0 if per_actor == 1 else 1 - per_actor},
        "sync": {"bucket_mib": 1},
        **more,
    }  # fmt: skip
    merged = {name: SETTINGS.get(name, {}) | groups.get(name, {}) for name in SETTINGS.keys() | groups.keys()}
    with started(merged, own, other) as stack:
        yield stack


async def difference(stack: Stack) -> float:
    """Mean absolute difference of engine and learner, in nats a token, on groups sampled now."""
    messages = await stack.actors[0].sample_held_out.remote(held_out_tickets(8, "frozen_lake"), 2, None)
    sums = await stack.learners.score(messages)
    assert sums.own_tokens > 100
    return float(sums.own_abs_diff / sums.own_tokens)


def assert_weights_cross(stack: Stack) -> None:
    """The first group, and a second one in its place: after both the engine has the learner's policy."""

    async def twice() -> list[float]:
        first = await difference(stack)
        await stack.learners.give(dict(enumerate(stack.actors)), anew=True)
        return [first, await difference(stack)]

    assert max(stack.run(twice)) < 0.1  # two random policies are apart by much more


@needs(2)
def test_weights_cross_over_nccl(tmp_path: Path) -> None:
    with on_gpus(tmp_path) as stack:
        assert stack.config.transfer_backend == "nccl"
        assert_weights_cross(stack)


@needs(3)
def test_weights_reach_every_part_of_an_engine(tmp_path: Path) -> None:
    with on_gpus(tmp_path, parts=2) as stack:
        assert_weights_cross(stack)


@needs(1)
def test_an_engine_sleeps_beside_its_rank_and_wakes_to_new_weights(tmp_path: Path) -> None:
    with on_gpus(tmp_path, per_actor=0.5, cluster={**SETTINGS["cluster"], "colocated": True}) as stack:
        assert stack.config.transfer_backend == "ipc"

        async def sleep_and_wake() -> None:
            await stack.actors[0].sleep.remote()
            await stack.learners.give(dict(enumerate(stack.actors)), anew=False)

        assert_weights_cross(stack)
        stack.run(sleep_and_wake)
        assert_weights_cross(stack)
