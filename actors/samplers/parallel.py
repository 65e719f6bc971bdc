"""Plain GRPO: independent solutions of one prompt, compared with each other."""

from __future__ import annotations

import asyncio

from actors.rollout import Rollout
from envs.trajectory import Credit, Group, GroupStats, Row, Stream, Trajectory, Verdict


class ParallelSampler:
    def __init__(self, group_size: int) -> None:
        self._group_size = group_size

    async def sample_group(self, rollout: Rollout) -> Group:
        opening_ids = rollout.opening()
        trajectories = await asyncio.gather(
            *(rollout.play(opening_ids, f"solution/{i}") for i in range(self._group_size))
        )
        rows = tuple(
            Row(i, first=1, credits=(solution_credit(trajectory, "solutions"),))
            for i, trajectory in enumerate(trajectories)
            if is_trainable(trajectory)
        )
        stats = GroupStats(env_steps=rollout.env_steps)
        return Group(rollout.ticket, "parallel", tuple(trajectories), rows, stats)


def solution_credit(trajectory: Trajectory, baseline: str, weight: float = 1.0) -> Credit:
    """All answers of a solution earn its reward."""
    return Credit(1, len(trajectory.segments), Stream.SOLUTION, baseline, trajectory.reward, weight)


def is_trainable(trajectory: Trajectory) -> bool:
    """Failed episodes and ones without any answer enter no row and so no baseline."""
    return trajectory.verdict is not Verdict.FAILED and len(trajectory.segments) > 1
