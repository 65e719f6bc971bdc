"""Token-budget micro-batches: rows end to end without padding, the same number of micro-batches on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.layout import Layout, layout_of
from learner.rows import TrainingRow

Plan = list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows end to end, T tokens of which N are trained.

    token_ids: (T,). layout: where the rows lie, in the order of `lengths`, the tokens of each. targets: (N,) places of the trained tokens in token_ids; what follows
    is (N,) too and of them. sequences: which sequence of the micro-batch, from 0. importance_caps: infinite where a
    token is not corrected. rows: 0 for a stand-in, which trains nothing.
    """

    token_ids: Tensor
    lengths: tuple[int, ...]
    layout: Layout
    targets: Tensor
    sequences: Tensor
    streams: Tensor
    behaviour_logprobs: Tensor
    policy_versions: Tensor
    advantages: Tensor
    loss_weights: Tensor
    own_context: Tensor
    importance_caps: Tensor
    rows: int


def plan_micro_batches(lengths: Sequence[int], ranks: int, budget: int) -> Plan:
    """Row numbers by [rank][micro-batch], longest row first; an empty micro-batch keeps the ranks in step.

    budget: tokens of a micro-batch.
    Each row goes to the rank with the fewest tokens so far, and there to the micro-batch with the fewest, so that all
    ranks have about the same work. A micro-batch stays within it, but for a single row that is longer than it.
    Under ZeRO-3 every forward is a collective: ranks with unequal numbers of forwards would wait for ever.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares = _spread(order, lengths, ranks)
    number = max(-(-sum(min(lengths[i], budget) for i in share) // budget) for share in shares)
    while True:
        plan = [_spread(share, lengths, number) for share in shares]
        batches = [batch for rank in plan for batch in rank]
        if all(len(b) <= 1 or sum(lengths[i] for i in b) <= budget for b in batches):
            return plan
        number += 1


def _spread(rows: Sequence[int], lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Rows over `bins` so that tokens are about even: each to the emptiest bin, the first of equals."""
    spread: list[list[int]] = [[] for _ in range(bins)]
    tokens = [0] * bins
    for row in rows:
        place = min(range(bins), key=tokens.__getitem__)
        spread[place].append(row)
        tokens[place] += lengths[row]
    return spread


def collate(rows: Sequence[TrainingRow], device: torch.device) -> MicroBatch:
    """Rows end to end; without rows a stand-in of two tokens that trains nothing."""
    if not rows:
        return _stand_in(device)
    starts = np.cumsum([0, *(len(row.token_ids) for row in rows)])
    counts = [len(row.targets) for row in rows]
    sequences = [int(row.sequences.max(initial=-1)) + 1 for row in rows]
    first_sequence = np.cumsum([0, *sequences])[:-1]

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate([getattr(row, name) for row in rows]), dtype=dtype, device=device)

    def repeated(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.repeat(np.asarray(values), counts), dtype=dtype, device=device)

    caps = [float("inf") if row.importance_cap is None else row.importance_cap for row in rows]
    lengths = tuple(len(row.token_ids) for row in rows)
    return MicroBatch(
        token_ids=joined("token_ids", torch.long),
        lengths=lengths,
        layout=layout_of(lengths, device),
        targets=joined("targets", torch.long) + repeated(starts[:-1].tolist(), torch.long),
        sequences=joined("sequences", torch.long) + repeated(first_sequence.tolist(), torch.long),
        streams=joined("streams", torch.long),
        behaviour_logprobs=joined("behaviour_logprobs", torch.float32),
        policy_versions=joined("policy_versions", torch.int32),
        advantages=joined("advantages", torch.float32),
        loss_weights=joined("loss_weights", torch.float32),
        own_context=repeated([row.own_context for row in rows], torch.bool),
        importance_caps=repeated(caps, torch.float32),
        rows=len(rows),
    )


def _stand_in(device: torch.device) -> MicroBatch:
    """One target without weight: its backward visits every parameter, as those of the other ranks do."""
    one, zero = torch.ones(1, dtype=torch.long, device=device), torch.zeros(1, device=device)
    return MicroBatch(
        token_ids=torch.zeros(2, dtype=torch.long, device=device),
        lengths=(2,),
        layout=layout_of((2,), device),
        targets=one,
        sequences=one - 1,
        streams=one - 1,
        behaviour_logprobs=zero,
        policy_versions=(one - 2).int(),
        advantages=zero,
        loss_weights=zero,
        own_context=zero.bool(),
        importance_caps=zero + float("inf"),
        rows=0,
    )
