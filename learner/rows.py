"""From groups to training rows: token arrays, who is trained, by which advantage, with which share of the loss.

The learner knows streams, baselines and rewards; it knows no exploration method.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema import GrpoSettings
from envs.trajectory import Credit, Floats, Group, Ints, Row, Segment, Stream
from learner.advantages import group_advantages


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One sequence of n tokens. All arrays (n,).

    loss_mask: tokens that are trained. behaviour_logprobs, policy_versions: as sampled; 0 and -1 elsewhere.
    advantages: A of each trained token. loss_weights: stream weight * credit weight / T_stream of each trained token.
    own_context: trained under the context it was sampled in, so behaviour log-probs are of the same distribution.
    importance_cap: cap of the ratio learner / engine; None for no correction.
    """

    token_ids: Ints
    loss_mask: npt.NDArray[np.bool_]
    behaviour_logprobs: Floats
    policy_versions: Ints
    advantages: Floats
    loss_weights: Floats
    own_context: bool
    importance_cap: float | None


def training_rows(groups: Sequence[Group], settings: GrpoSettings) -> list[TrainingRow]:
    """All rows of a batch, with advantages inside each baseline of each stream and T_stream over the whole batch."""
    advantages = credit_advantages(groups, settings.normalize_std)
    stream_tokens = count_stream_tokens(groups)
    weights = settings.stream_weights
    per_token = {stream: getattr(weights, stream) / max(stream_tokens[stream], 1) for stream in Stream}
    return [
        _training_row(group, row, advantages[g, r], per_token, settings.importance_cap)
        for g, r, group, row in _numbered_rows(groups)
    ]


def credit_advantages(groups: Sequence[Group], normalize_std: bool) -> dict[tuple[int, int], list[float]]:
    """Advantages of each row's credits, by (group number, row number): rewards compared inside one baseline."""
    members: dict[tuple[int, Stream, str], list[tuple[int, int, int]]] = defaultdict(list)
    for g, r, _, row in _numbered_rows(groups):
        for c, credit in enumerate(row.credits):
            members[g, credit.stream, credit.baseline].append((g, r, c))
    result = {(g, r): [0.0] * len(row.credits) for g, r, _, row in _numbered_rows(groups)}
    for places in members.values():
        rewards = np.array([groups[g].rows[r].credits[c].reward for g, r, c in places])
        for (g, r, c), advantage in zip(places, group_advantages(rewards, normalize_std), strict=True):
            result[g, r][c] = float(advantage)
    return result


def count_stream_tokens(groups: Sequence[Group]) -> Counter[Stream]:
    """T_stream: trained tokens of each stream over the whole batch."""
    tokens: Counter[Stream] = Counter()
    for _, _, group, row in _numbered_rows(groups):
        for credit in (c for c in row.credits if c.weight):
            tokens[credit.stream] += sum(len(s.token_ids) for s in _credited(group, row, credit))
    return tokens


def _numbered_rows(groups: Sequence[Group]) -> Iterator[tuple[int, int, Group, Row]]:
    for g, group in enumerate(groups):
        for r, row in enumerate(group.rows):
            yield g, r, group, row


def _credited(group: Group, row: Row, credit: Credit) -> list[Segment]:
    segments = group.trajectories[row.trajectory].segments[credit.first : credit.last]
    return [s for s in segments if s.sampled]


def _training_row(
    group: Group, row: Row, advantages: Sequence[float], per_token: dict[Stream, float], importance_cap: float | None
) -> TrainingRow:
    segments = group.trajectories[row.trajectory].segments
    context = [s.token_ids for s in segments[: row.first]] if row.context_ids is None else [row.context_ids]
    lengths = [sum(map(len, context)), *(len(s.token_ids) for s in segments[row.first :])]
    starts = np.cumsum(lengths)
    n = int(starts[-1])
    out = TrainingRow(
        token_ids=np.concatenate([*context, *(s.token_ids for s in segments[row.first :])]).astype(np.int32),
        loss_mask=np.zeros(n, np.bool_),
        behaviour_logprobs=np.zeros(n, np.float32),
        policy_versions=np.full(n, -1, np.int32),
        advantages=np.zeros(n, np.float32),
        loss_weights=np.zeros(n, np.float32),
        own_context=row.context_ids is None,
        importance_cap=importance_cap if row.context_ids is None else row.importance_cap,
    )
    for credit, advantage in zip(row.credits, advantages, strict=True):
        for index in range(credit.first, credit.last):
            segment = segments[index]
            if segment.sampled:
                start = int(starts[index - row.first])
                place = slice(start, start + len(segment.token_ids))
                out.loss_mask[place] = True
                out.behaviour_logprobs[place] = segment.behaviour_logprobs
                out.policy_versions[place] = segment.policy_versions
                out.advantages[place] = advantage
                out.loss_weights[place] = credit.weight * per_token[credit.stream]
    return out
