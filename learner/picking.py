"""Clip-Cov and KL-Cov pick tokens of the whole batch: each rank's log-probs are brought together for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from configs.objectives import ClipCov, KlCov
from learner.covariance import chosen_tokens
from learner.plan import Unit
from learner.rows import TrainingRow


def picked_tokens(
    rows: Sequence[TrainingRow],
    plan: Sequence[Sequence[Unit]],
    old: Sequence[Tensor],
    settings: ClipCov | KlCov,
    seed: int,
) -> list[Tensor]:
    """Which tokens are picked, (N,) of each of this rank's micro-batches. All ranks call with the same rows and seed.

    plan: the units of the micro-batches, none in a stand-in. old: log-probs before the update, (N,) of each.
    """
    ends = np.cumsum([0, *(len(row.targets) for row in rows)])
    numbers = [[i for unit in batch for i in unit.rows] for batch in plan]
    places = [np.concatenate([np.arange(ends[i], ends[i + 1]) for i in own] or [ends[:0]]) for own in numbers]
    whole = old[0].new_zeros(int(ends[-1]))
    for place, logprobs in zip(places, old, strict=True):
        if len(place):
            whole[torch.from_numpy(place)] = logprobs
    dist.all_reduce(whole)
    picked = np.zeros(0, np.bool_)
    if len(whole):
        advantages = np.concatenate([row.advantages for row in rows])
        picked = chosen_tokens(whole.cpu().numpy(), advantages, settings, seed)
    # A stand-in's only target is in no row.
    own = [picked[place] if len(place) else np.zeros(len(o), np.bool_) for place, o in zip(places, old, strict=True)]
    return [torch.as_tensor(part, device=whole.device) for part in own]
