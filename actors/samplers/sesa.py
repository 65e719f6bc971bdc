"""SESA: method sketches drafted one after another, then guided solutions of each, in parallel (arXiv 2510.15502).

Where the gradient goes is a choice (`train_on`): the solution under the plain prompt (the paper), the solution and the
sketches under the contexts they were sampled in, or both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from actors.episode import Episode
from actors.rollout import Rollout, Root
from actors.samplers.parallel import is_trainable, solution_credit
from actors.samplers.sketching import Sketch, SketchList, guided_frame
from configs.samplers import SesaSettings
from envs.trajectory import Group, Ints, Row, Trajectory


class SesaSampler:
    def __init__(self, settings: SesaSettings) -> None:
        self._settings = settings

    async def sample_group(self, rollout: Rollout) -> Group:
        return (await self.sample_root(rollout))[0]

    async def sample_root(self, rollout: Rollout) -> Root:
        drafted = SketchList(rollout, self._settings)
        await drafted.draft()
        drafts = drafted.trajectories()
        episodes = await self._expand(rollout, drafted.sketches)
        solutions = [episode.trajectory for episode in episodes]
        numbered = [(len(drafts) + i, t) for i, t in enumerate(solutions) if is_trainable(t)]
        rows = [*self._solution_rows(rollout.opening(), numbered)]
        if self._settings.train_on != "plain":
            rows += drafted.rows([self._reward(k, sketch, solutions) for k, sketch in enumerate(drafted.sketches)])
        stats = replace(drafted.stats, env_steps=rollout.env_steps)
        group = Group(rollout.ticket, "sesa", (*drafts, *solutions), tuple(rows), stats)
        return group, {len(drafts) + i: episode for i, episode in enumerate(episodes)}

    async def _expand(self, rollout: Rollout, sketches: Sequence[Sketch]) -> list[Episode]:
        """Stage II: solutions guided by each sketch. A rejected sketch's place is filled by plain solutions."""
        frame, plain_ids = await guided_frame(rollout, self._settings.templates.guidance), rollout.opening()
        followed = {k: frame.around(sketch.token_ids) for k, sketch in enumerate(sketches) if not sketch.rejected}
        return await asyncio.gather(
            *(
                rollout.play(followed.get(k, plain_ids), f"expansion/{k}/{i}", sketch=k if k in followed else None)
                for k in range(self._settings.sketches)
                for i in range(self._settings.expansions_per_sketch)
            ),
            *(rollout.play(plain_ids, f"plain/{i}") for i in range(self._settings.plain_solutions)),
        )

    def _solution_rows(self, plain_ids: Ints, solutions: Sequence[tuple[int, Trajectory]]) -> Iterator[Row]:
        for index, trajectory in solutions:
            if self._settings.train_on in ("plain", "both"):
                # A solution sampled without a sketch is on-policy under the plain prompt: it keeps its own context.
                context_ids = None if trajectory.sketch is None else plain_ids
                credit = solution_credit(trajectory, "plain", self._settings.plain_weight)
                yield Row(index, 1, (credit,), context_ids, self._settings.plain_importance_cap)
            if self._settings.train_on in ("guided", "both"):
                # With several expansions of a sketch, its solutions are compared with each other alone.
                several = self._settings.expansions_per_sketch > 1 and trajectory.sketch is not None
                baseline = f"guided/{trajectory.sketch}" if several else "guided"
                # Without a sketch both rows are the same: this one then counts in its baseline and trains nothing.
                twice = self._settings.train_on == "both" and trajectory.sketch is None
                weight = 0.0 if twice else self._settings.guided_weight
                yield Row(index, 1, (solution_credit(trajectory, baseline, weight),))

    def _reward(self, k: int, sketch: Sketch, solutions: Sequence[Trajectory]) -> float | None:
        """What sketch k earns, of the rewards of its expansions; None where all of those failed."""
        if sketch.rejected:
            return self._settings.rejected_reward
        rewards = [t.reward for t in solutions if t.sketch == k and is_trainable(t)]
        if not rewards:
            return None
        return max(rewards) if self._settings.sketch_credit == "max" else fmean(rewards)
