"""Token-budget micro-batches: rows of like length together, the same number of micro-batches on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.rows import TrainingRow

Plan = list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows padded on the right: (B, T), but own_context and importance_caps (B, 1).

    A cap is infinite where a row is not corrected.
    """

    token_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    behaviour_logprobs: Tensor
    policy_versions: Tensor
    advantages: Tensor
    loss_weights: Tensor
    own_context: Tensor
    importance_caps: Tensor


def plan_micro_batches(lengths: Sequence[int], ranks: int, tokens_per_micro_batch: int) -> Plan:
    """Row numbers by [rank][micro-batch]; an empty micro-batch is a stand-in that keeps the ranks in step.

    Rows go to the ranks in turn, longest first and back and forth, so that ranks get about the same tokens. Padded
    tokens of a micro-batch stay within the budget, but for a single row that is longer than it. Under ZeRO-3 every
    forward is a collective: ranks with unequal numbers of forwards would wait for each other for ever.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for position, row in enumerate(order):
        turn, place = divmod(position, ranks)
        shares[place if turn % 2 == 0 else ranks - 1 - place].append(row)
    plan = [_pack(share, lengths, tokens_per_micro_batch) for share in shares]
    most = max(len(batches) for batches in plan)
    return [batches + [[] for _ in range(most - len(batches))] for batches in plan]


def _pack(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for row in rows:  # longest first: the first row of a batch sets its width
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[TrainingRow], device: torch.device) -> MicroBatch:
    """Rows padded to the longest; without rows a stand-in of two tokens that trains nothing."""
    width = max((len(row.token_ids) for row in rows), default=2)

    def padded(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        out = np.full((max(len(rows), 1), width), fill, np.float64)  # exact for ids and for float32 alike
        for i, row in enumerate(rows):
            values = getattr(row, name)
            out[i, : len(values)] = values
        return torch.as_tensor(out, dtype=dtype, device=device)

    caps = [float("inf") if row.importance_cap is None else row.importance_cap for row in rows] or [float("inf")]
    lengths = torch.tensor([len(row.token_ids) for row in rows] or [width], device=device)
    return MicroBatch(
        token_ids=padded("token_ids", 0, torch.long),
        attention_mask=(torch.arange(width, device=device) < lengths.unsqueeze(1)).long(),
        loss_mask=padded("loss_mask", 0, torch.bool),
        behaviour_logprobs=padded("behaviour_logprobs", 0, torch.float32),
        policy_versions=padded("policy_versions", -1, torch.int32),
        advantages=padded("advantages", 0, torch.float32),
        loss_weights=padded("loss_weights", 0, torch.float32),
        own_context=torch.tensor([[row.own_context] for row in rows] or [[False]], device=device),
        importance_caps=torch.tensor(caps, dtype=torch.float32, device=device).unsqueeze(1),
    )
