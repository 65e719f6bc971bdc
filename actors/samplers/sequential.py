"""Plain sequential sampling: every solution is sampled behind the ones before it (arXiv 2510.15502, synthetic task).

There is no second stage: the list itself is what is trained, each solution under the context it was sampled in, a
repeated or unreadable one by a reward below a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from actors.episode import without_open_turn
from actors.rollout import Rollout, given
from actors.samplers.parallel import is_trainable
from actors.samplers.repeats import identity
from configs.samplers import SequentialSettings
from envs.trajectory import Credit, Group, GroupStats, Ints, Role, Row, Segment, Stream, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One solution of a list: its place there and among the list's trajectories, its own segments [first, end).

    reward: what it earns. plain: sampled under the plain prompt, with no solution before it.
    """

    number: int
    trajectory: int
    first: int
    end: int
    reward: float
    plain: bool


@dataclass(slots=True)
class Attempts:
    """One list as it grows. kept: what later ones are shown; taken_back: rejected ones that were sampled again."""

    number: int
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
        lists = await asyncio.gather(*(self._list(rollout, number) for number in range(self._settings.lists)))
        trajectories: list[Trajectory] = []
        rows: list[Row] = []
        by_place = self._settings.baseline == "position" and not _alike(lists)
        for attempts in lists:
            before = len(trajectories)
            trajectories += [_moved(trajectory, before) for trajectory in attempts.trajectories]
            own = (*self._rows(attempts, by_place), *self._plain_rows(attempts, rollout.opening()))
            rows += [replace(row, trajectory=row.trajectory + before) for row in own]
        stats = GroupStats(duplicate_answers=sum(a.repeated for a in lists), env_steps=rollout.env_steps)
        return Group(rollout.ticket, "sequential", tuple(trajectories), tuple(rows), stats)

    async def _list(self, rollout: Rollout, list_number: int) -> Attempts:
        attempts = Attempts(list_number)
        tries = 1 + (self._settings.max_resamples if self._settings.duplicates == "resample" else 0)
        for number in range(self._settings.solutions):
            if not await self._attempt(rollout, attempts, number, tries):
                break  # no room in the context for another solution
        return attempts

    async def _attempt(self, rollout: Rollout, attempts: Attempts, number: int, tries: int) -> bool:
        for again in range(tries):
            before = await self._before(rollout, attempts)
            context_ids = np.concatenate([s.token_ids for s in before])
            # An answer that only the context cuts short is no fault of the policy: the list ends before it.
            if attempts.kept and not rollout.has_room(context_ids, rollout.tokens_per_turn):
                return False
            purpose = f"list/{attempts.number}/solution/{number}/{again}"
            played = (await rollout.play(context_ids, purpose)).trajectory
            own = without_open_turn(played.segments)[1:]  # a failed episode may have ended before its next answer
            if not own and played.verdict is Verdict.FAILED:
                attempts.trajectories.append(played)
                return True
            if not own:
                return False
            parent = attempts.kept[-1].trajectory if attempts.kept and self._settings.history == "tokens" else None
            shared = None if parent is None else len(attempts.trajectories[parent].segments)
            whole = replace(played, segments=(*before, *own), parent=parent, pivot=shared)
            attempts.trajectories.append(whole)
            rejected = self._is_rejected(rollout, attempts, whole, own)
            reward = self._settings.rejected_reward if rejected else whole.reward
            if whole.verdict is Verdict.UNPARSABLE:
                reward += whole.reward  # its penalty on top, or saying nothing would be as good as a repeat
            place = (number, len(attempts.trajectories) - 1, len(before), len(whole.segments))
            attempt = Attempt(*place, reward, plain=not attempts.kept)
            if not rejected or again == tries - 1:
                attempts.kept.append(attempt)
                attempts.said.append(_words(rollout, own))
                return True
            attempts.taken_back.append(attempt)
        return False

    async def _before(self, rollout: Rollout, attempts: Attempts) -> tuple[Segment, ...]:
        """What a solution is sampled behind: the conversation so far, or a prompt that tells the solutions so far."""
        if not attempts.kept:
            return (given(Role.PROMPT, rollout.opening()),)
        if self._settings.history == "text":
            return (given(Role.PROMPT, rollout.opening(await rollout.env.tried(attempts.said))),)
        segments = attempts.trajectories[attempts.kept[-1].trajectory].segments
        closed = rollout.chat.is_closed(segments[-1].token_ids)
        request_ids = rollout.chat.reply(await rollout.env.another_attempt(), closed)
        return (*segments, given(Role.OBSERVATION, request_ids))

    def _is_rejected(
        self, rollout: Rollout, attempts: Attempts, trajectory: Trajectory, own: tuple[Segment, ...]
    ) -> bool:
        """Whether a solution says nothing readable or was there before; a failed episode is neither."""
        if trajectory.verdict in (Verdict.FAILED, Verdict.UNPARSABLE):
            return trajectory.verdict is Verdict.UNPARSABLE
        words = _words(rollout, own)
        # Where nothing could be done there is no answer to compare: then it is the words.
        key = identity(words, trajectory.answer or words, self._settings.duplicate_of)
        if key not in attempts.known:
            attempts.known.add(key)
            return False
        attempts.repeated += 1
        return self._settings.duplicates != "keep"

    def _rows(self, attempts: Attempts, by_place: bool) -> Iterator[Row]:
        """Solutions behind the ones before them: one row for a conversation, with a credit for each solution in it."""
        if self._settings.train_on == "plain":
            return
        kept, taken_back = (
            [a for a in part if is_trainable(attempts.trajectories[a.trajectory])]
            for part in (attempts.kept, attempts.taken_back)
        )
        if self._settings.history == "tokens" and kept:
            yield Row(kept[-1].trajectory, 1, tuple(_credit(attempts, attempt, by_place) for attempt in kept))
            kept = []
        for attempt in (*kept, *taken_back):
            yield Row(attempt.trajectory, attempt.first, (_credit(attempts, attempt, by_place),))

    def _plain_rows(self, attempts: Attempts, plain_ids: Ints) -> Iterator[Row]:
        """The solutions under the plain prompt. The first was sampled there: with `both` the list's row has it."""
        if self._settings.train_on == "guided":
            return
        for attempt in attempts.kept:
            trajectory = attempts.trajectories[attempt.trajectory]
            if not is_trainable(trajectory) or (attempt.plain and self._settings.train_on == "both"):
                continue
            credit = Credit(attempt.first, attempt.end, Stream.SOLUTION, "plain", attempt.reward)
            yield Row(attempt.trajectory, attempt.first, (credit,), None if attempt.plain else plain_ids)


def _alike(lists: Sequence[Attempts]) -> bool:
    """Whether all lists earn the same place by place, as a dead policy's do: then places have nothing to compare."""
    return len({tuple(attempt.reward for attempt in attempts.kept) for attempts in lists}) == 1


def _credit(attempts: Attempts, attempt: Attempt, by_place: bool) -> Credit:
    baseline = f"place/{attempt.number}" if by_place else f"list/{attempts.number}"
    return Credit(attempt.first, attempt.end, Stream.SOLUTION, baseline, attempt.reward)


def _moved(trajectory: Trajectory, by: int) -> Trajectory:
    """The same trajectory where `by` others come before its list's."""
    return trajectory if trajectory.parent is None else replace(trajectory, parent=trajectory.parent + by)


def _words(rollout: Rollout, own: tuple[Segment, ...]) -> str:
    return " ".join(rollout.chat.text(s.token_ids) for s in own if s.role is Role.ANSWER)
