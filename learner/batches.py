"""Micro-batches as tensors: rows end to end without padding, a beginning that rows share once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.layout import Layout, Piece, layout_of
from learner.plan import Unit
from learner.rows import TrainingRow


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """T tokens of which N are trained.

    token_ids: (T,). lengths: tokens of each row, shared ones counted in each. layout: where rows lie. targets: (N,)
    places of the trained tokens in token_ids, sources: of the tokens before them. What follows is (N,) too and of them.
    sequences: which sequence of the micro-batch, from 0. importance_caps: infinite where a token is not corrected.
    rows: 0 for a stand-in, which trains nothing.
    """

    token_ids: Tensor
    lengths: tuple[int, ...]
    layout: Layout
    targets: Tensor
    sources: Tensor
    sequences: Tensor
    streams: Tensor
    behaviour_logprobs: Tensor
    policy_versions: Tensor
    advantages: Tensor
    loss_weights: Tensor
    own_context: Tensor
    importance_caps: Tensor
    rows: int


def collate(all_rows: Sequence[TrainingRow], units: Sequence[Unit], device: torch.device) -> MicroBatch:
    """The rows of the units, in their order; without units a stand-in of two tokens that trains nothing."""
    if not units:
        return _stand_in(device)
    pieces, tokens, targets, sources = _placed(all_rows, units)
    rows = [all_rows[i] for unit in units for i in unit.rows]
    counts = [len(row.targets) for row in rows]
    first_sequence = np.cumsum([0, *(int(row.sequences.max(initial=-1)) + 1 for row in rows)])[:-1]

    def tensor(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(arrays), dtype=dtype, device=device)

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        return tensor([getattr(row, name) for row in rows], dtype)

    def repeated(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.repeat(np.asarray(values), counts), dtype=dtype, device=device)

    caps = [float("inf") if row.importance_cap is None else row.importance_cap for row in rows]
    return MicroBatch(
        token_ids=tensor(tokens, torch.long),
        lengths=tuple(len(row.token_ids) for row in rows),
        layout=layout_of(pieces, device),
        targets=tensor(targets, torch.long),
        sources=tensor(sources, torch.long),
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


def _placed(
    rows: Sequence[TrainingRow], units: Sequence[Unit]
) -> tuple[list[Piece], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Pieces, their tokens, and the places of each row's targets and of the tokens before those."""
    pieces: list[Piece] = []
    tokens: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    end = 0
    for unit in units:
        shared = end
        if unit.prefix:
            pieces.append(Piece(shared, unit.prefix))
            tokens.append(rows[unit.rows[0]].token_ids[: unit.prefix])
            end += unit.prefix
        for row in (rows[i] for i in unit.rows):
            own = row.token_ids[unit.prefix :]
            pieces.append(Piece(end, len(own), shared, unit.prefix))
            tokens.append(own)
            place = row.targets + (end - unit.prefix)
            targets.append(place)
            # What comes before a row's first own token is the shared beginning's last.
            sources.append(np.where(row.targets == unit.prefix, shared + unit.prefix, place) - 1)
            end += len(own)
    return pieces, tokens, targets, sources


def _stand_in(device: torch.device) -> MicroBatch:
    """One target without weight: its backward visits every parameter, as those of the other ranks do."""
    one, zero = torch.ones(1, dtype=torch.long, device=device), torch.zeros(1, device=device)
    return MicroBatch(
        token_ids=torch.zeros(2, dtype=torch.long, device=device),
        lengths=(2,),
        layout=layout_of([Piece(0, 2)], device),
        targets=one,
        sources=one - 1,
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
