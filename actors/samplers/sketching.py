"""SESA's stage I: method sketches drafted one after another, each knowing the ones before it (arXiv 2510.15502)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.chat import MARK, Frame
from actors.rollout import Rollout, given, sampled
from actors.samplers.repeats import identity
from configs.samplers import SesaSettings
from envs.trajectory import Credit, GroupStats, Ints, Role, Row, Segment, Stream, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Sketch:
    """A drafted sketch: tokens (n,) without the end, what they say, and the segments up to it, its own the last.

    Rejected: repeated or unreadable, not to be expanded.
    """

    token_ids: Ints
    text: str
    segments: tuple[Segment, ...]
    rejected: bool


class SketchList:
    """What was drafted so far, and the tries that were taken back.

    With `history: tokens` the list is one conversation. With `text` each sketch answers a prompt of its own, which
    tells the accepted ones before it.
    """

    def __init__(self, rollout: Rollout, settings: SesaSettings) -> None:
        self.sketches: list[Sketch] = []
        self.stats = GroupStats()
        self._taken_back: list[Trajectory] = []
        self._known: set[str] = set()
        self._rollout, self._settings = rollout, settings

    async def draft(self) -> None:
        """Sketch by sketch, until there are enough or the context has no room for another one."""
        for number in range(self._settings.sketches):
            if not await self._draft_one(number):
                break
        self.stats = replace(self.stats, sketches=len(self.sketches))

    async def _draft_one(self, number: int) -> bool:
        chat, settings = self._rollout.chat, self._settings
        before = await self._before(number)
        context_ids = np.concatenate([s.token_ids for s in before])
        if number and not self._rollout.has_room(context_ids, settings.sketch_tokens):
            return False
        tries = 1 + (settings.max_resamples if settings.duplicates == "resample" else 0)
        for attempt in range(tries):
            purpose = f"sketch/{number}/{attempt}"
            completion = await self._rollout.sample(context_ids, settings.sketch_tokens, purpose)
            if completion is None:
                return False
            token_ids = chat.without_end(completion.token_ids)
            text, segment = chat.text(token_ids), sampled(Role.SKETCH, completion)
            accepted = await self._accepts(text)
            if accepted or attempt == tries - 1:
                self.sketches.append(Sketch(token_ids, text, (*before, segment), rejected=not accepted))
                return True
            self._take_back(context_ids, segment)
        return False

    async def _before(self, number: int) -> tuple[Segment, ...]:
        """What sketch `number` is sampled behind."""
        rollout = self._rollout
        if number and self._settings.history == "tokens":
            segments = self.sketches[-1].segments
            closed = rollout.chat.is_closed(segments[-1].token_ids)
            request_ids = rollout.chat.reply(await self._request(number), closed)
            return (*segments, given(Role.OBSERVATION, request_ids))
        words = await self._request(0)
        accepted = [sketch.text for sketch in self.sketches if not sketch.rejected]
        if accepted:
            words += await rollout.env.sketches_so_far(accepted) + await self._request(number)
        return (given(Role.PROMPT, rollout.opening(words)),)

    async def _request(self, number: int) -> str:
        templates = self._settings.templates
        template = templates.another if number else templates.request
        if template is None:
            return await self._rollout.env.sketch_request(number)
        return template.replace("{number}", str(number + 1))

    async def _accepts(self, text: str) -> bool:
        """Whether a sketch is readable and, unless repeats are kept, new; counts it where it is not both."""
        canonical, stats = await self._rollout.env.sketch_key(text), self.stats
        if canonical is None:
            self.stats = replace(stats, unparsable_sketches=stats.unparsable_sketches + 1)
            return False
        key = identity(text, canonical, self._settings.duplicate_of)
        if key in self._known:
            self.stats = replace(stats, duplicate_sketches=stats.duplicate_sketches + 1)
            return self._settings.duplicates == "keep"
        self._known.add(key)
        return True

    def _take_back(self, context_ids: Ints, segment: Segment) -> None:
        """Leave a rejected try out of the list; it stays on record as a trajectory of its own."""
        self._taken_back.append(Trajectory((given(Role.PROMPT, context_ids), segment), Verdict.UNPARSABLE, 0.0))
        self.stats = replace(self.stats, resampled_sketches=self.stats.resampled_sketches + 1)

    def trajectories(self) -> list[Trajectory]:
        """Those of the list (a conversation is one), then the tries taken back."""
        ends = self.sketches if self._settings.history == "text" else self.sketches[-1:]
        return [*(Trajectory(sketch.segments, Verdict.WRONG, 0.0) for sketch in ends), *self._taken_back]

    def rows(self, rewards: Sequence[float | None]) -> Iterator[Row]:
        """A row for each of `trajectories`, these being the group's first, with a credit for each sketch in it.

        rewards: what each sketch earns; None where nothing is known of it.
        """
        if self._settings.history == "text":
            yield from (Row(k, 1, (_credit(1, reward),)) for k, reward in enumerate(rewards) if reward is not None)
        elif any(reward is not None for reward in rewards):
            places = [(len(sketch.segments) - 1, reward) for sketch, reward in zip(self.sketches, rewards, strict=True)]
            yield Row(0, 1, tuple(_credit(segment, reward) for segment, reward in places if reward is not None))
        listed = len(self.trajectories()) - len(self._taken_back)
        for number in range(len(self._taken_back)):
            yield Row(listed + number, 1, (_credit(1, self._settings.rejected_reward),))


async def guided_frame(rollout: Rollout, template: str | None) -> Frame:
    """The opening of stage II around a sketch's tokens; template: the words to use instead of the environment's."""
    if template is None:
        return await rollout.guided_frame()
    words = template.replace("{sketch}", MARK)
    return rollout.chat.opening_frame(rollout.env.rules, rollout.env.first_message + words)


def _credit(segment: int, reward: float) -> Credit:
    return Credit(segment, segment + 1, Stream.SKETCH, "sketches", reward)
