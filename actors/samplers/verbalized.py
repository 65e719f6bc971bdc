"""Verbalized sampling: one answer to a prompt that asks for several candidates (arXiv 2510.01171).

Each candidate is judged as the only answer of an episode of its own, so the environment must be of one turn. An answer
becomes one segment a candidate, and a candidate's tokens earn its reward.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from actors.chat import Chat
from actors.episode import Episode
from actors.failures import EnvironmentFailure
from actors.rollout import Rollout
from actors.samplers.parallel import is_trainable
from configs.samplers import VerbalizedSettings
from envs.base import Outcome
from envs.trajectory import Credit, Group, GroupStats, Ints, Row, Segment, Stream, Trajectory, Verdict

BASELINE = "candidates"


@dataclass(frozen=True, slots=True)
class Candidate:
    """tokens: of the answer, up to the one that completes its closing tag. text: from the candidate before to there."""

    tokens: int
    text: str


class VerbalizedSampler:
    def __init__(self, settings: VerbalizedSettings) -> None:
        self._settings = settings

    async def sample_group(self, rollout: Rollout) -> Group:
        opening_ids = rollout.opening(await rollout.env.several(self._settings.candidates))
        responses = await asyncio.gather(
            *(self._respond(rollout, opening_ids, f"response/{i}") for i in range(self._settings.responses))
        )
        trajectories: list[Trajectory] = []
        rows: list[Row] = []
        for judged in responses:
            rows += _rows(judged, len(trajectories))
            trajectories += _numbered(judged, len(trajectories))
        stats = GroupStats(duplicate_answers=sum(map(_repeats, responses)), env_steps=rollout.env_steps)
        return Group(rollout.ticket, "verbalized", tuple(trajectories), tuple(rows), stats)

    async def _respond(self, rollout: Rollout, opening_ids: Ints, purpose: str) -> list[Trajectory]:
        """One answer as a trajectory for each candidate in it; `parent` counts inside the answer.

        An answer without any is one trajectory with the environment's verdict on its whole text.
        """
        episode = await rollout.play(opening_ids, purpose)
        said = episode.trajectory.segments[1:]
        count = self._settings.candidates
        found = candidates(rollout.chat, said[0].token_ids, rollout.env.answer_tag, count + 1) if said else []
        if not found:
            return [episode.trajectory]
        asked = found[:count]
        # What follows the last one is its own (its end of turn), unless that is more candidates than were asked for.
        borders = [candidate.tokens for candidate in (asked if len(found) > len(asked) else asked[:-1])]
        segments = _cut(episode, borders).trajectory.segments
        outcomes = await asyncio.gather(*(_judge(rollout, candidate.text) for candidate in asked))
        return [*_trajectories(segments, outcomes)]


def candidates(chat: Chat, token_ids: Ints, tag: str, most: int) -> list[Candidate]:
    """The first candidates of an answer (n,), in their order: each ends with a closed `<tag>...</tag>`.

    To find the tokens of one takes a dozen decodings of the answer: an answer of nothing but tags must not take
    thousands.
    """
    text = chat.text(token_ids)
    found: dict[int, str] = {}
    begin = 0
    for end in _ends(text, tag):
        if len(found) == most:
            break
        # Of two that one token completes, the first has no tokens of its own: the second takes its place.
        found[_tokens_of(chat, token_ids, text[:end])] = text[begin:end]
        begin = end
    return [Candidate(*item) for item in found.items()]


def _ends(text: str, tag: str) -> Iterator[int]:
    """Behind which characters of the text a `<tag>...</tag>` is closed."""
    opening, closing, behind = f"<{tag}>", f"</{tag}>", 0
    while (start := text.find(opening, behind)) >= 0 and (end := text.find(closing, start)) >= 0:
        behind = end + len(closing)
        yield behind


def _tokens_of(chat: Chat, token_ids: Ints, start: str) -> int:
    """How many tokens say `start`, with which the text of all of them starts."""
    counts = range(1, len(token_ids) + 1)
    return counts[bisect_left(counts, True, key=lambda count: chat.text(token_ids[:count]).startswith(start))]


def _cut(episode: Episode, borders: Sequence[int]) -> Episode:
    """The episode with its one answer cut behind so many of its tokens each; rising."""
    before = 0
    for segment, border in enumerate(borders, start=1):
        episode = episode.cut(segment, border - before)
        before = border
    return episode


async def _judge(rollout: Rollout, text: str) -> tuple[float, Outcome]:
    """Reward and outcome of an answer to the ticket's episode; FAILED where the environment or its judge broke."""
    try:
        step = await rollout.env_at().step(text)
    except EnvironmentFailure as failure:
        return 0.0, Outcome(Verdict.FAILED, "", str(failure))
    rollout.env_steps += 1
    return (0.0 if step.outcome.verdict is Verdict.FAILED else step.reward), step.outcome


def _trajectories(segments: Sequence[Segment], outcomes: Sequence[tuple[float, Outcome]]) -> Iterator[Trajectory]:
    """Candidate i (from 0) is segment 1 + i behind those before it; what was not asked for is the last one's too."""
    for i, (reward, outcome) in enumerate(outcomes):
        is_last = i == len(outcomes) - 1
        parent, pivot = (i - 1, 1 + i) if i else (None, None)
        yield Trajectory(
            tuple(segments if is_last else segments[: 2 + i]), outcome.verdict, reward, outcome.answer,
            parent=parent, pivot=pivot, cause=outcome.cause,
        )  # fmt: skip


def _numbered(judged: Sequence[Trajectory], first: int) -> Iterator[Trajectory]:
    """The trajectories of an answer as they are in the group, where they begin with number `first`."""
    for trajectory in judged:
        yield trajectory if trajectory.parent is None else replace(trajectory, parent=first + trajectory.parent)


def _rows(judged: Sequence[Trajectory], first: int) -> Iterator[Row]:
    """One row for an answer, with a credit for each candidate that could be judged."""
    trainable = [i for i, trajectory in enumerate(judged) if is_trainable(trajectory)]
    if trainable:
        credits = [Credit(1 + i, 2 + i, Stream.SOLUTION, BASELINE, judged[i].reward) for i in trainable]
        yield Row(first + trainable[-1], 1, tuple(credits))


def _repeats(judged: Sequence[Trajectory]) -> int:
    """Candidates of an answer that say what an earlier one of it did."""
    answers = [t.answer for t in judged if t.verdict in (Verdict.SOLVED, Verdict.WRONG) and t.answer]
    return len(answers) - len(set(answers))
