"""What a token loses: small pure functions on (N,) float32 tensors of trained tokens. `objective.py` composes them.

Advantages A, clip ranges and every log-prob but `logprobs` and what is made of it are constants to the gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, clip_low: Tensor, clip_high: Tensor, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective of each token, as a loss, and whether the clip was active: (N,) each.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_ratios) (arXiv 1707.06347, eq. 7), with two clip
    ranges as in DAPO (arXiv 2503.14476). Where A < 0 the loss is at most dual_clip |A| (arXiv 1912.09729). Given
    the mean log-ratio of each token's sequence this is GSPO (arXiv 2507.18071).
    The minimum bounds r from one side only, by A's sign. Bounding log r there is the same, and what is bounded cannot
    overflow.
    """
    helpful = advantages >= 0
    lower = torch.where(helpful, -torch.inf, _log_bound(-clip_low))
    upper = torch.where(helpful, _log_bound(clip_high), torch.inf if dual_clip is None else math.log(dual_clip))
    clipped = ((log_ratios < lower) | (log_ratios > upper)) & (advantages != 0)
    return -log_ratios.clamp(lower, upper).exp() * advantages, clipped


def cispo(
    logprobs: Tensor, log_ratios: Tensor, advantages: Tensor, clip_low: Tensor, clip_high: Tensor
) -> tuple[Tensor, Tensor]:
    """CISPO's loss of each token, and whether its weight was clipped: (N,) each.

    -sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprobs (arXiv 2506.13585): the clip bounds a token's
    weight and does not silence it. clip_low of 1 or more is no lower bound, as in the paper's runs.
    """
    lower, upper = _log_bound(-clip_low), _log_bound(clip_high)
    ratios = log_ratios.detach()
    return -ratios.clamp(lower, upper).exp() * advantages * logprobs, (ratios < lower) | (ratios > upper)


def _log_bound(offset: Tensor) -> Tensor:
    """log(1 + offset); -infinity from offset -1 down."""
    return offset.clamp(min=-1).log1p()


def kl_estimates(logprobs: Tensor, reference: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimates of KL(pi || pi_ref) from tokens sampled from pi: (N,). With d = log(pi_ref / pi):

    k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d (Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html).
    """
    difference = reference - logprobs
    if estimator == "k1":
        return -difference
    return difference.square() / 2 if estimator == "k2" else difference.expm1() - difference
