"""From groups to training rows: token arrays, who is trained, by which advantage, with which share of the loss.

The learner knows streams, baselines and rewards; it knows no exploration method.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import RunConfig
from envs.trajectory import Credit, Floats, Group, Ints, Row, Segment, Stream
from learner.advantages import group_advantages, overlong_penalty
from learner.shares import Shares, stream_shares

STREAMS = tuple(Stream)
# (group, row, credit): where a credit is in a batch
Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One sequence of n tokens, m of them trained. Arrays are (m,) but token_ids, (n,).

    group: its number in the batch; rows of a group may begin alike. targets: places of the trained tokens in token_ids,
    rising. sequences: number of the credit each belongs to. streams: number of its stream. behaviour_logprobs,
    policy_versions: as sampled. advantages: A. loss_weights: what multiplies its loss: stream weight * credit weight /
    the stream's normaliser. own_context: trained under the context it was sampled in, so behaviour log-probs are of the
    same distribution. importance_cap: cap of the ratio learner / engine; None for no correction.
    """

    group: int
    token_ids: Ints
    targets: Ints
    sequences: Ints
    streams: Ints
    behaviour_logprobs: Floats
    policy_versions: Ints
    advantages: Floats
    loss_weights: Floats
    own_context: bool
    importance_cap: float | None


def training_rows(groups: Sequence[Group], config: RunConfig) -> list[TrainingRow]:
    """All rows of a batch, with advantages inside each baseline of each stream and shares over the whole batch."""
    advantages = credit_advantages(groups, config)
    trained = {place: place in advantages and is_trained(groups, place, config) for place in _places(groups)}
    shares = stream_shares(_credit_lengths(groups, trained), config)
    rows = []
    for g, r, group, row in _numbered_rows(groups):
        judged = [(advantages.get((g, r, c), 0.0), trained[g, r, c]) for c in range(len(row.credits))]
        rows.append(_training_row(g, group, row, judged, shares, config.grpo.importance.cap))
    return rows


def credit_advantages(groups: Sequence[Group], config: RunConfig) -> dict[Place, float]:
    """The advantage of each credit: rewards, less what overlong answers lose, compared inside one baseline.

    Where groups without signal are dropped, so is a baseline of equal rewards in a group with signal elsewhere (pivots
    without a way out): its credits are not in the result, so not trained, and their tokens dilute no stream's mean.
    """
    members: dict[tuple[int, Stream, str], list[Place]] = defaultdict(list)
    result: dict[Place, float] = {}
    for g, r, _, row in _numbered_rows(groups):
        for c, credit in enumerate(row.credits):
            if credit.advantage is None:
                members[g, credit.stream, credit.baseline].append((g, r, c))
            else:
                result[g, r, c] = credit.advantage
    rewards = {key: np.array([_reward(groups, place, config) for place in places]) for key, places in members.items()}
    telling = {key for key, found in rewards.items() if found.max() > found.min()}
    heard = {g for g, _, _ in telling} if config.grpo.drop_zero_signal else set()
    for key, places in members.items():
        if key in telling or key[0] not in heard:
            advantages = group_advantages(rewards[key], config.grpo.normalize_std)
            result |= zip(places, advantages.tolist(), strict=True)
    return result


def _places(groups: Sequence[Group]) -> Iterator[Place]:
    return ((g, r, c) for g, r, _, row in _numbered_rows(groups) for c in range(len(row.credits)))


def _reward(groups: Sequence[Group], place: Place, config: RunConfig) -> float:
    credit, segments = _credited(groups, place)
    longest = length = 0
    for number, segment in enumerate(segments):
        # An answer that was cut at a pivot, or between candidates, is several segments in a row.
        length = length + len(segment.token_ids) if segment.sampled else 0
        longest = max(longest, length if number >= credit.first else 0)
    return credit.reward - overlong_penalty(longest, config.rollout.tokens_per_turn, config.grpo.overlong)


def is_trained(groups: Sequence[Group], place: Place, config: RunConfig) -> bool:
    """Whether a credit's tokens are trained: not without weight, nor where an answer was cut and those are masked."""
    credit, segments = _credited(groups, place)
    cut = not all(s.ended for s in segments[credit.first :])
    return credit.weight != 0 and not (config.grpo.overlong.mask_truncated and cut)


def _credit_lengths(groups: Sequence[Group], trained: dict[Place, bool]) -> Iterator[tuple[Stream, int]]:
    """(stream, trained tokens) of each trained credit."""
    for place in (place for place, is_trained in trained.items() if is_trained):
        credit, segments = _credited(groups, place)
        yield credit.stream, sum(len(s.token_ids) for s in segments[credit.first :] if s.sampled)


def _credited(groups: Sequence[Group], place: Place) -> tuple[Credit, tuple[Segment, ...]]:
    """A credit and its trajectory up to the last segment it is for."""
    g, r, c = place
    row = groups[g].rows[r]
    credit = row.credits[c]
    return credit, groups[g].trajectories[row.trajectory].segments[: credit.last]


def _numbered_rows(groups: Sequence[Group]) -> Iterator[tuple[int, int, Group, Row]]:
    for g, group in enumerate(groups):
        for r, row in enumerate(group.rows):
            yield g, r, group, row


def _training_row(
    number: int,
    group: Group,
    row: Row,
    judged: Sequence[tuple[float, bool]],
    shares: Shares,
    importance_cap: float | None,
) -> TrainingRow:
    """number: of the group. judged: (advantage, whether trained) of each credit."""
    segments = group.trajectories[row.trajectory].segments
    context = [s.token_ids for s in segments[: row.first]] if row.context_ids is None else [row.context_ids]
    starts = np.cumsum([sum(map(len, context)), *(len(s.token_ids) for s in segments[row.first :])])
    n = int(starts[-1])
    sequences, streams, versions = (np.full(n, -1, np.int32) for _ in range(3))
    logprobs, advantages, weights = (np.zeros(n, np.float32) for _ in range(3))
    for sequence, (credit, (advantage, trained)) in enumerate(zip(row.credits, judged, strict=True)):
        own = [i for i in range(credit.first, credit.last) if segments[i].sampled]
        length = sum(len(segments[i].token_ids) for i in own)
        for index in own if trained else ():
            start = int(starts[index - row.first])
            place = slice(start, start + len(segments[index].token_ids))
            logprobs[place] = segments[index].behaviour_logprobs
            versions[place] = segments[index].policy_versions
            sequences[place] = sequence
            streams[place] = STREAMS.index(credit.stream)
            advantages[place] = advantage
            weights[place] = credit.weight * shares.of_token(credit.stream, length)
    targets = np.flatnonzero(sequences >= 0).astype(np.int32)
    if 0 in targets[:1]:
        raise ValueError(f"ticket {group.ticket.index}: a row that begins with a sampled token has no context for it")
    return TrainingRow(
        group=number,
        token_ids=np.concatenate([*context, *(s.token_ids for s in segments[row.first :])]).astype(np.int32),
        targets=targets,
        sequences=sequences[targets],
        streams=streams[targets],
        behaviour_logprobs=logprobs[targets],
        policy_versions=versions[targets],
        advantages=advantages[targets],
        loss_weights=weights[targets],
        own_context=row.context_ids is None,
        importance_cap=importance_cap if row.context_ids is None else row.importance_cap,
    )
