"""Plain GRPO: independent solutions of one prompt, compared with each other."""

from __future__ import annotations

import asyncio

from actors.rollout import Rollout, Root
from envs.trajectory import Credit, Group, GroupStats, Row, Stream, Trajectory, Verdict


class ParallelSampler:
    def __init__(self, group_size: int) -> None:
        self._group_size = group_size

    async def sample_group(self, rollout: Rollout) -> Group:
        return (await self.sample_root(rollout))[0]

    async def sample_root(self, rollout: Rollout) -> Root:
        opening_ids = rollout.opening()
        episodes = await asyncio.gather(*(rollout.play(opening_ids, f"solution/{i}") for i in range(self._group_size)))
        trajectories = [episode.trajectory for episode in episodes]
        rows = tuple(
            Row(i, first=1, credits=(solution_credit(trajectory, "solutions"),))
            for i, trajectory in enumerate(trajectories)
            if is_trainable(trajectory)
        )
        stats = GroupStats(env_steps=rollout.env_steps)
        return Group(rollout.ticket, "parallel", tuple(trajectories), rows, stats), dict(enumerate(episodes))


def solution_credit(trajectory: Trajectory, baseline: str, weight: float = 1.0) -> Credit:
    """All answers of a solution earn its reward."""
    return Credit(1, len(trajectory.segments), Stream.SOLUTION, baseline, trajectory.reward, weight)


def is_trainable(trajectory: Trajectory) -> bool:
    """Failed episodes and ones without any answer of their own enter no row and so no baseline."""
    own = trajectory.segments[trajectory.pivot or 0 :]
    return trajectory.verdict is not Verdict.FAILED and any(segment.sampled for segment in own)
