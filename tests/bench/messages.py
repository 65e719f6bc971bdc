"""Codec and queue: groups and megabytes a second, one process each."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np
import ray

from configs.schema import QueueSettings
from envs.codec import decode_group, encode_group
from envs.trajectory import Credit, Group, Ints, Role, Row, Segment, Stream, Ticket, Trajectory, Verdict
from orchestration.cluster import ROOT
from orchestration.replay_queue import ReplayQueue
from tests.bench.rounds import interleaved, rounded

GROUPS = 64
SAMPLES, PROMPT_TOKENS, TURNS, ANSWER_TOKENS, OBSERVATION_TOKENS = 8, 120, 6, 20, 25
VOCABULARY = 300


def measure(rounds: int) -> dict[str, Any]:
    groups = [made_group(index) for index in range(GROUPS)]
    messages = [encode_group(group) for group in groups]
    megabytes = sum(map(len, messages)) / 1e6

    def encoded() -> float:
        return GROUPS / seconds_of(lambda: [encode_group(group) for group in groups])

    def decoded() -> float:
        return GROUPS / seconds_of(lambda: [decode_group(message) for message in messages])

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )  # fmt: skip
    try:
        remote: Any = ray.remote(ReplayQueue)
        queue = remote.options(num_cpus=0).remote(QueueSettings(max_groups=2 * GROUPS))

        def queued() -> float:
            return GROUPS / seconds_of(lambda: asyncio.run(put_and_take(queue, messages)))

        found = interleaved({"encode": encoded, "decode": decoded, "queue": queued}, rounds)
    finally:
        ray.shutdown()
    figures: dict[str, Any] = {"group_bytes": int(1e6 * megabytes / GROUPS)}
    for name, values in found.items():
        groups_per_s = float(np.median(values))
        figures[f"{name}_groups_per_s"] = rounded(groups_per_s)
        figures[f"{name}_mb_per_s"] = rounded(groups_per_s * megabytes / GROUPS)
    return figures


def seconds_of(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def put_and_take(queue: Any, messages: list[bytes]) -> None:
    """All groups into the queue's process and out of it again, as actors put them and the driver takes them."""
    await asyncio.gather(*(queue.put.remote(message) for message in messages))
    taken_ref, payloads_ref = queue.take.options(num_returns=2).remote(len(messages), 0, range(len(messages)))
    taken = await taken_ref
    assert len(taken.fresh) == len(messages)
    assert len(await payloads_ref) == len(messages)


def made_group(index: int) -> Group:
    """A group as multi-turn play leaves it: SAMPLES trajectories of TURNS answers behind one prompt."""
    rng = np.random.default_rng(index)
    prompt = rng.integers(0, VOCABULARY, PROMPT_TOKENS, np.int32)
    trajectories = tuple(made_trajectory(prompt, rng) for _ in range(SAMPLES))
    rows = tuple(
        Row(i, 1, (Credit(1, len(t.segments), Stream.SOLUTION, "solutions", t.reward, 1.0),))
        for i, t in enumerate(trajectories)
    )
    return Group(Ticket(index, "frozen_lake", index), "parallel", trajectories, rows)


def made_trajectory(prompt: Ints, rng: np.random.Generator) -> Trajectory:
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int32)
    segments = [Segment(Role.PROMPT, prompt, *nothing)]
    for turn in range(TURNS):
        if turn:
            segments.append(
                Segment(Role.OBSERVATION, rng.integers(0, VOCABULARY, OBSERVATION_TOKENS, np.int32), *nothing)
            )
        said = rng.integers(0, VOCABULARY, ANSWER_TOKENS, np.int32)
        logprobs = -rng.random(ANSWER_TOKENS).astype(np.float32)
        segments.append(Segment(Role.ANSWER, said, logprobs, np.zeros(ANSWER_TOKENS, np.int32), True))
    solved = bool(rng.random() < 0.5)
    return Trajectory(tuple(segments), Verdict.SOLVED if solved else Verdict.WRONG, float(solved), answer="left up")
