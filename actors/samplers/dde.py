"""DDE: failed solutions are taken up again at one pivot each, several times (DEEP-GRPO, arXiv 2602.14169).

The root is any sampler that says which episodes its trajectories are: independent solutions, or SESA's. Continuations
of one pivot are compared with each other, in the stream `branch`; what they took over is context without gradient.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from actors.episode import Episode
from actors.failures import EnvironmentFailure
from actors.rollout import Rollout, RootSampler
from actors.samplers.parallel import is_trainable
from actors.samplers.pivots import Candidate, candidates_of, draw
from actors.samplers.recoverability import Recoverability
from configs.samplers import DdeSettings
from envs.trajectory import Credit, Group, PivotTrial, Row, Stream, Trajectory, Verdict

RESAMPLED = (Verdict.WRONG, Verdict.UNPARSABLE)  # not FAILED: that says nothing of what the policy did


@dataclass(frozen=True, slots=True)
class Pivot:
    """A state of failed trajectory number `parent` to go on from, behind the first `segment` segments of `episode`."""

    parent: int
    candidate: Candidate
    episode: Episode
    segment: int

    @classmethod
    def at(cls, parent: int, episode: Episode, candidate: Candidate) -> Pivot:
        """A pivot inside an answer makes two segments of it."""
        if not candidate.offset:
            return cls(parent, candidate, episode, candidate.segment)
        cut = episode.cut(candidate.segment, candidate.offset)
        return cls(parent, candidate, cut, candidate.segment + 1)

    @property
    def tokens_behind(self) -> int:
        """Tokens the parent sampled behind the pivot."""
        return sum(len(s.token_ids) for s in self.episode.trajectory.segments[self.segment :] if s.sampled)


Grown = tuple[Pivot, list[Trajectory]]  # a pivot and its branches


class DdeSampler:
    """recoverability: which pivots are worth it; the driver replaces it by what it has fitted to all actors' pivots."""

    def __init__(self, settings: DdeSettings, root: RootSampler) -> None:
        self._settings, self._root = settings, root
        self.recoverability = Recoverability.unfitted(settings.feature_count)

    async def sample_group(self, rollout: Rollout) -> Group:
        rollout.keep_turns = True
        group, episodes = await self._root.sample_root(rollout)
        rollout.keep_turns = False
        failed = sorted(n for n, episode in episodes.items() if episode.trajectory.verdict in RESAMPLED)
        chosen = await asyncio.gather(
            *(self._choose(rollout, n, episodes[n]) for n in failed[: self._settings.max_pivots])
        )
        grown = await self._grow(rollout, [pivot for pivot in chosen if pivot is not None])
        return self._with_branches(replace(group, sampler="dde"), grown, rollout.env_steps)

    async def _choose(self, rollout: Rollout, parent: int, episode: Episode) -> Pivot | None:
        """The pivot of a failed episode; none where nothing was sampled."""
        candidates = candidates_of(episode, self._settings, rollout.chat.pieces)
        if not candidates:
            return None
        if self._settings.rule == "oracle":
            return Pivot.at(parent, episode, await self._deepest_recoverable(rollout, episode, candidates))
        rng = np.random.default_rng(rollout.seed(f"pivot/{parent}"))
        return Pivot.at(parent, episode, draw(candidates, self.recoverability, self._settings, rng))

    async def _deepest_recoverable(
        self, rollout: Rollout, episode: Episode, candidates: Sequence[Candidate]
    ) -> Candidate:
        """The last turn from which the environment's solver knows a way to success; the root where it knows of none."""
        for candidate in reversed(candidates[1:]):
            if not candidate.offset and await self._is_recoverable(rollout, episode, candidate):
                return candidate
        return candidates[0]

    async def _is_recoverable(self, rollout: Rollout, episode: Episode, candidate: Candidate) -> bool:
        try:
            env = rollout.env_at(episode.turn_of(candidate.segment))
            return await env.ceiling() > 0
        except EnvironmentFailure:
            return False  # a solver that is too slow knows of no way

    async def _grow(self, rollout: Rollout, pivots: Sequence[Pivot]) -> list[Grown]:
        """The branches of each pivot, all at once; with a cap one pivot after another, as long as the next will fit."""
        cap = self._settings.max_extra_tokens
        if cap is None:
            return list(zip(pivots, await asyncio.gather(*(self._branch(rollout, p) for p in pivots)), strict=True))
        grown: list[Grown] = []
        spent = 0
        for pivot in pivots:
            if spent + self._settings.branches * pivot.tokens_behind > cap:
                break
            branches = await self._branch(rollout, pivot)
            spent += sum(branch.sampled_tokens for branch in branches)
            grown.append((pivot, branches))
        return grown

    async def _branch(self, rollout: Rollout, pivot: Pivot) -> list[Trajectory]:
        episodes = await asyncio.gather(
            *(
                rollout.branch(pivot.episode, pivot.parent, pivot.segment, f"branch/{pivot.parent}/{i}")
                for i in range(self._settings.branches)
            )
        )
        return [episode.trajectory for episode in episodes]

    def _with_branches(self, group: Group, grown: Sequence[Grown], env_steps: int) -> Group:
        trajectories, rows = [*group.trajectories], [*group.rows]
        for pivot, _ in grown:
            trajectories[pivot.parent] = pivot.episode.trajectory
            if pivot.candidate.offset:
                rows = [behind_cut(r, pivot.candidate.segment) if r.trajectory == pivot.parent else r for r in rows]
        solution_rows = tuple(rows)
        for pivot, branches in grown:
            rows += branch_rows(pivot, branches, len(trajectories), solution_rows)
            trajectories += branches
        trials = tuple(self._trial(pivot, branches) for pivot, branches in grown)
        stats = replace(group.stats, env_steps=env_steps)
        return replace(group, trajectories=tuple(trajectories), rows=tuple(rows), stats=stats, pivots=trials)

    def _trial(self, pivot: Pivot, branches: Sequence[Trajectory]) -> PivotTrial:
        judged = [branch for branch in branches if is_trainable(branch)]
        rewards = [branch.reward for branch in judged]
        return PivotTrial(
            pivot.parent,
            pivot.segment,
            pivot.candidate.depth,
            pivot.candidate.features(self._settings),
            branches=len(judged),
            solved=sum(branch.verdict is Verdict.SOLVED for branch in judged),
            gain=fmean(rewards) - pivot.episode.trajectory.reward if rewards else 0.0,
        )


def behind_cut(row: Row, segment: int) -> Row:
    """The same targets once an answer, of this number, has become two segments."""

    def moved(place: int) -> int:
        return place + (place > segment)

    credits = (replace(c, first=moved(c.first), last=moved(c.last)) for c in row.credits)
    return replace(row, first=moved(row.first), credits=tuple(credits))


def branch_rows(pivot: Pivot, branches: Sequence[Trajectory], first: int, rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of the branches, which are trajectories from number `first` on.

    A branch is trained where its parent is: a parent that SESA trains under the plain prompt has branches that go on
    from the plain prompt and what they took over. rows: of the group, with those of the parent.
    """
    segments = pivot.episode.trajectory.segments
    for number, branch in enumerate(branches, first):
        for row in rows:
            if row.trajectory != pivot.parent or not row.credits[0].weight or not is_trainable(branch):
                continue
            context_ids = row.context_ids
            if context_ids is not None:
                shared = (segment.token_ids for segment in segments[row.first : pivot.segment])
                context_ids = np.concatenate([context_ids, *shared])
            credit = Credit(
                pivot.segment, len(branch.segments), Stream.BRANCH, f"branch/{pivot.parent}", branch.reward,
                row.credits[0].weight,
            )  # fmt: skip
            yield Row(number, pivot.segment, (credit,), context_ids, row.importance_cap)
