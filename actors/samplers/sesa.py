"""SESA: method sketches drafted one after another, then one guided solution of each, in parallel (arXiv 2510.15502).

Where the gradient goes is a choice (`train_on`): the solution under the plain prompt (the paper), the solution and the
sketches under the contexts they were sampled in, or both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from actors.episode import Episode
from actors.rollout import Rollout, Root, given, sampled
from actors.samplers.parallel import is_trainable, solution_credit
from configs.samplers import SesaSettings
from envs.trajectory import Credit, Group, GroupStats, Ints, Role, Row, Segment, Stream, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Sketch:
    """A drafted sketch: tokens (n,) without the end, and its segment in the list. Rejected: not to be expanded."""

    token_ids: Ints
    segment: int
    rejected: bool


class SketchList:
    """Stage I as it grows: the conversation so far, what was drafted in it, and the tries that were taken back."""

    def __init__(self, opening_ids: Ints) -> None:
        self.segments: list[Segment] = [given(Role.PROMPT, opening_ids)]
        self.sketches: list[Sketch] = []
        self.taken_back: list[Trajectory] = []
        self.stats = GroupStats()
        self._keys: set[str] = set()

    @property
    def context_ids(self) -> Ints:
        return np.concatenate([s.token_ids for s in self.segments])

    def judge(self, key: str | None) -> bool:
        """Whether a sketch of this key is new and readable; counts it either way."""
        if key is None:
            self.stats = replace(self.stats, unparsable_sketches=self.stats.unparsable_sketches + 1)
        elif key in self._keys:
            self.stats = replace(self.stats, duplicate_sketches=self.stats.duplicate_sketches + 1)
        else:
            self._keys.add(key)
            return True
        return False

    def take_back(self, segment: Segment) -> None:
        """Leave a rejected try out of the conversation; it stays on record as a trajectory of its own."""
        prompt = given(Role.PROMPT, self.context_ids)
        self.taken_back.append(Trajectory((prompt, segment), Verdict.UNPARSABLE, 0.0))
        self.stats = replace(self.stats, resampled_sketches=self.stats.resampled_sketches + 1)

    def add(self, segment: Segment, token_ids: Ints, rejected: bool) -> None:
        self.segments.append(segment)
        self.sketches.append(Sketch(token_ids, len(self.segments) - 1, rejected))

    def trajectories(self) -> list[Trajectory]:
        """The list itself first, then the tries taken back; none where not even one sketch had room."""
        if not self.sketches:
            return []
        segments = self.segments[:-1] if self.segments[-1].role is Role.OBSERVATION else self.segments
        return [Trajectory(tuple(segments), Verdict.WRONG, 0.0), *self.taken_back]


class SesaSampler:
    def __init__(self, settings: SesaSettings) -> None:
        self._settings = settings

    async def sample_group(self, rollout: Rollout) -> Group:
        return (await self.sample_root(rollout))[0]

    async def sample_root(self, rollout: Rollout) -> Root:
        drafted = await self._draft(rollout)
        sketch_trajectories = drafted.trajectories()
        episodes = await self._expand(rollout, drafted.sketches)
        solutions = [episode.trajectory for episode in episodes]
        trajectories = (*sketch_trajectories, *solutions)
        numbered = [(len(sketch_trajectories) + i, t) for i, t in enumerate(solutions) if is_trainable(t)]
        rows = [*self._solution_rows(rollout.opening(), numbered)]
        if self._settings.train_on != "plain":
            rows += self._sketch_rows(drafted, solutions)
        stats = replace(drafted.stats, sketches=len(drafted.sketches), env_steps=rollout.env_steps)
        group = Group(rollout.ticket, "sesa", trajectories, tuple(rows), stats)
        return group, {len(sketch_trajectories) + i: episode for i, episode in enumerate(episodes)}

    async def _draft(self, rollout: Rollout) -> SketchList:
        """Stage I: each sketch is sampled after the prompt and the sketches before it."""
        drafted = SketchList(rollout.opening(rollout.env.sketch_request(0)))
        tries = 1 + (self._settings.max_resamples if self._settings.duplicates == "resample" else 0)
        for number in range(self._settings.sketches):
            if number:
                closed = rollout.chat.is_closed(drafted.segments[-1].token_ids)
                request_ids = rollout.chat.reply(rollout.env.sketch_request(number), closed)
                drafted.segments.append(given(Role.OBSERVATION, request_ids))
            if not await self._draft_one(rollout, drafted, number, tries):
                break  # no room in the context for another sketch
        return drafted

    async def _draft_one(self, rollout: Rollout, drafted: SketchList, number: int, tries: int) -> bool:
        for attempt in range(tries):
            purpose = f"sketch/{number}/{attempt}"
            completion = await rollout.sample(drafted.context_ids, self._settings.sketch_tokens, purpose)
            if completion is None:
                return False
            token_ids = rollout.chat.without_end(completion.token_ids)
            key = rollout.env.sketch_key(rollout.chat.text(token_ids))
            accepted = drafted.judge(key) or (key is not None and self._settings.duplicates == "keep")
            segment = sampled(Role.SKETCH, completion)
            if accepted or attempt == tries - 1:
                drafted.add(segment, token_ids, rejected=not accepted)
                return True
            drafted.take_back(segment)
        return False

    async def _expand(self, rollout: Rollout, sketches: Sequence[Sketch]) -> list[Episode]:
        """Stage II: solutions guided by each sketch. A rejected sketch's place is filled by plain solutions."""
        frame, plain_ids = rollout.guided_frame(), rollout.opening()
        return await asyncio.gather(
            *(
                rollout.play(
                    plain_ids if k >= len(sketches) or sketches[k].rejected else frame.around(sketches[k].token_ids),
                    f"expansion/{k}/{i}",
                    sketch=None if k >= len(sketches) or sketches[k].rejected else k,
                )
                for k in range(self._settings.sketches)
                for i in range(self._settings.expansions_per_sketch)
            )
        )

    def _solution_rows(self, plain_ids: Ints, solutions: Sequence[tuple[int, Trajectory]]) -> Iterator[Row]:
        for index, trajectory in solutions:
            if self._settings.train_on in ("plain", "both"):
                # A solution sampled without a sketch is on-policy under the plain prompt: it keeps its own context.
                context_ids = None if trajectory.sketch is None else plain_ids
                yield Row(
                    index, 1, (solution_credit(trajectory, "plain", self._settings.plain_weight),),
                    context_ids, self._settings.plain_importance_cap,
                )  # fmt: skip
            # Without a sketch both rows would be the same: the plain one is enough.
            twice = self._settings.train_on == "both" and trajectory.sketch is None
            if self._settings.train_on in ("guided", "both") and not twice:
                # With several expansions of a sketch, its solutions are compared with each other alone.
                several = self._settings.expansions_per_sketch > 1 and trajectory.sketch is not None
                baseline = f"guided/{trajectory.sketch}" if several else "guided"
                yield Row(index, 1, (solution_credit(trajectory, baseline, self._settings.guided_weight),))

    def _sketch_rows(self, drafted: SketchList, solutions: Sequence[Trajectory]) -> Iterator[Row]:
        """One row for the list, with a credit for each sketch: the mean reward of what came of it."""
        credits = [
            Credit(sketch.segment, sketch.segment + 1, Stream.SKETCH, "sketches", reward)
            for k, sketch in enumerate(drafted.sketches)
            if (reward := self._sketch_reward(k, sketch, solutions)) is not None
        ]
        if credits:
            yield Row(0, 1, tuple(credits))
        for number in range(len(drafted.taken_back)):
            rejected = Credit(1, 2, Stream.SKETCH, "sketches", self._settings.rejected_reward)
            yield Row(1 + number, 1, (rejected,))

    def _sketch_reward(self, k: int, sketch: Sketch, solutions: Sequence[Trajectory]) -> float | None:
        if sketch.rejected:
            return self._settings.rejected_reward
        rewards = [t.reward for t in solutions if t.sketch == k and is_trainable(t)]
        return fmean(rewards) if rewards else None
