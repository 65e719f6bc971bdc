"""What a micro-batch adds to an update's figures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learner.batches import MicroBatch
from learner.objective import Loss
from learner.update_sums import UpdateSums


def trained_sums(
    batch: MicroBatch, logprobs: Tensor, entropy: Tensor, loss: Loss, version: int, packing: bool
) -> UpdateSums:
    """Sums over the trained tokens; zeros for a stand-in. logprobs, entropy: (N,)."""
    if not batch.rows:
        return UpdateSums()
    columns = (entropy, loss.clipped, loss.importance, loss.kl, loss.left_out)
    sums = torch.stack([loss.total.detach(), *(column.detach().float().sum() for column in columns)])
    total, entropies, clipped, importance, kl, left_out = sums.tolist()  # one wait for the device
    return replace(
        compared_sums(batch, logprobs, version, packing),
        loss=total,
        tokens=len(batch.targets),
        entropy=entropies,
        clipped=clipped,
        importance=importance,
        kl=kl,
        left_out=left_out,
    )


def compared_sums(batch: MicroBatch, logprobs: Tensor, version: int, packing: bool) -> UpdateSums:
    """The engine's log-probs against the learner's (N,), of tokens sampled under `version` in their own context."""
    if not batch.rows:
        return UpdateSums()
    own = batch.own_context & (batch.policy_versions == version)
    difference = (logprobs.detach() - batch.behaviour_logprobs).abs()[own]
    padded = batch.layout.attended if packing else max(batch.lengths) * len(batch.lengths)
    return UpdateSums(
        forward_tokens=sum(batch.lengths),
        computed_tokens=len(batch.token_ids),
        attended=len(batch.token_ids) if packing and batch.token_ids.is_cuda else padded,
        own_tokens=difference.numel(),
        own_abs_diff=float(difference.sum()),
        own_abs_diff_max=float(difference.max()) if difference.numel() else 0.0,
    )
