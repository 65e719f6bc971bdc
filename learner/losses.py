"""The policy-gradient loss of one micro-batch: small pure functions on (B, T) tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log pi(token) and the entropy (nats, no gradient) at each position, of the distribution that was sampled from.

    logits: (B, T, V) of the positions before the tokens; token_ids: (B, T). Both results (B, T), float32.
    """
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(-1)
    logprobs = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.no_grad():
        probabilities = (scaled - normaliser.unsqueeze(-1)).exp()
        entropy = normaliser - (probabilities * scaled).sum(-1)
    return logprobs, entropy


def clipped_policy_gradient(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective of each token, as a loss, and whether the clip was active. All (B, T).

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprobs - old_logprobs) (arXiv 1707.06347, eq. 7).
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(unclipped, clipped), unclipped > clipped


def truncated_importance(old_logprobs: Tensor, behaviour_logprobs: Tensor, caps: Tensor) -> Tensor:
    """min(cap, pi_old / pi_behaviour) of each token, a constant to the gradient; 1 where the cap is infinite.

    old_logprobs, behaviour_logprobs: (B, T); caps: (B, 1). Corrects for the engine's numerics and for stale weights
    (truncated importance sampling, as in IMPALA, arXiv 1802.01561).
    """
    weights = torch.minimum((old_logprobs - behaviour_logprobs).exp(), caps).detach()
    return torch.where(caps.isinf(), torch.ones_like(weights), weights)


def weighted_sum(token_losses: Tensor, loss_weights: Tensor) -> Tensor:
    """The micro-batch's part of L = sum over streams of weight / T_stream * sum over tokens; a scalar.

    loss_weights: (B, T), zero on tokens that are not trained. The parts of all micro-batches and ranks add up to L.
    """
    return (token_losses * loss_weights).sum()
