"""Plain sequential sampling: every solution is sampled behind the ones before it (arXiv 2510.15502, synthetic task).

There is no second stage: the list itself is what is trained, each solution under the context it was sampled in, a
repeated one by a reward below a miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from actors.rollout import Rollout, given
from actors.samplers.parallel import is_trainable
from actors.samplers.repeats import identity
from configs.samplers import SequentialSettings
from envs.trajectory import Credit, Group, GroupStats, Ints, Role, Row, Segment, Stream, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One solution of the list: its number among the trajectories, its own segments [first, end), what it earns."""

    trajectory: int
    first: int
    end: int
    reward: float


@dataclass(slots=True)
class Attempts:
    """The list as it grows. kept: those that later ones are shown; taken_back: repeats that were sampled again."""

    trajectories: list[Trajectory] = field(default_factory=list)
    kept: list[Attempt] = field(default_factory=list)
    taken_back: list[Attempt] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    repeated: int = 0


class SequentialSampler:
    def __init__(self, settings: SequentialSettings) -> None:
        self._settings = settings

    async def sample_group(self, rollout: Rollout) -> Group:
        attempts = Attempts()
        tries = 1 + (self._settings.max_resamples if self._settings.duplicates == "resample" else 0)
        for number in range(self._settings.solutions):
            if not await self._attempt(rollout, attempts, number, tries):
                break  # no room in the context for another solution
        stats = GroupStats(duplicate_answers=attempts.repeated, env_steps=rollout.env_steps)
        rows = (*self._rows(attempts), *self._plain_rows(attempts, rollout.opening()))
        return Group(rollout.ticket, "sequential", tuple(attempts.trajectories), rows, stats)

    async def _attempt(self, rollout: Rollout, attempts: Attempts, number: int, tries: int) -> bool:
        for again in range(tries):
            before = self._before(rollout, attempts, number)
            context_ids = np.concatenate([s.token_ids for s in before])
            played = (await rollout.play(context_ids, f"solution/{number}/{again}")).trajectory
            own = played.segments[1:]
            if not own and played.verdict is Verdict.FAILED:
                attempts.trajectories.append(played)
                return True
            if not own:
                return False
            parent = attempts.kept[-1].trajectory if attempts.kept and self._settings.history == "tokens" else None
            shared = None if parent is None else len(attempts.trajectories[parent].segments)
            whole = replace(played, segments=(*before, *own), parent=parent, pivot=shared)
            attempts.trajectories.append(whole)
            repeated = self._is_repeated(rollout, attempts, whole, own)
            reward = self._settings.duplicate_reward if repeated else whole.reward
            attempt = Attempt(len(attempts.trajectories) - 1, len(before), len(whole.segments), reward)
            if not repeated or again == tries - 1:
                attempts.kept.append(attempt)
                attempts.said.append(_words(rollout, own))
                return True
            attempts.taken_back.append(attempt)
        return False

    def _before(self, rollout: Rollout, attempts: Attempts, number: int) -> tuple[Segment, ...]:
        """What a solution is sampled behind: the conversation so far, or a prompt that tells the solutions so far."""
        if not number:
            return (given(Role.PROMPT, rollout.opening()),)
        if self._settings.history == "text":
            return (given(Role.PROMPT, rollout.opening(rollout.env.tried(attempts.said))),)
        segments = attempts.trajectories[attempts.kept[-1].trajectory].segments
        closed = rollout.chat.is_closed(segments[-1].token_ids)
        request_ids = rollout.chat.reply(rollout.env.another_attempt(), closed)
        return (*segments, given(Role.OBSERVATION, request_ids))

    def _is_repeated(
        self, rollout: Rollout, attempts: Attempts, trajectory: Trajectory, own: tuple[Segment, ...]
    ) -> bool:
        """Whether a solution was there before; one that said nothing readable is no repeat, it earns its own reward."""
        if trajectory.verdict in (Verdict.FAILED, Verdict.UNPARSABLE):
            return False
        key = identity(_words(rollout, own), trajectory.answer, self._settings.duplicate_of)
        if key not in attempts.known:
            attempts.known.add(key)
            return False
        attempts.repeated += 1
        return self._settings.duplicates != "keep"

    def _rows(self, attempts: Attempts) -> Iterator[Row]:
        """Solutions behind the ones before them: one row for a conversation, with a credit for each solution in it."""
        if self._settings.train_on == "plain":
            return
        kept, taken_back = (
            [a for a in part if is_trainable(attempts.trajectories[a.trajectory])]
            for part in (attempts.kept, attempts.taken_back)
        )
        if self._settings.history == "tokens" and kept:
            yield Row(kept[-1].trajectory, 1, tuple(_credit(attempt) for attempt in kept))
            kept = []
        for attempt in (*kept, *taken_back):
            yield Row(attempt.trajectory, attempt.first, (_credit(attempt),))

    def _plain_rows(self, attempts: Attempts, plain_ids: Ints) -> Iterator[Row]:
        """The same solutions under the plain prompt; the first of a list was sampled there."""
        if self._settings.train_on == "guided":
            return
        for attempt in attempts.kept:
            trajectory = attempts.trajectories[attempt.trajectory]
            twice = self._settings.train_on == "both" and attempt.first == 1 and trajectory.parent is None
            if not is_trainable(trajectory) or twice:
                continue
            credit = _credit(attempt, "plain")
            yield Row(attempt.trajectory, attempt.first, (credit,), None if attempt.first == 1 else plain_ids)


def _credit(attempt: Attempt, baseline: str = "list") -> Credit:
    return Credit(attempt.first, attempt.end, Stream.SOLUTION, baseline, attempt.reward)


def _words(rollout: Rollout, own: tuple[Segment, ...]) -> str:
    return " ".join(rollout.chat.text(s.token_ids) for s in own if s.role is Role.ANSWER)
