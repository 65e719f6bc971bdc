"""The loss of one micro-batch, put together as the settings say. What is for what: docs/learner.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.objectives import ClipCov, EntropyBonus, GrpoSettings, KlCov
from learner.batches import MicroBatch
from learner.importance import importance_weights, off_policy_sequences, sequence_mean
from learner.losses import cispo, clipped_surrogate, kl_estimates
from learner.rows import STREAMS


@dataclass(frozen=True, slots=True)
class Loss:
    """total: scalar, this micro-batch's part of the batch's loss; the rest (N,), without gradient.

    clipped: the ratio was outside of its range, on the side that matters. importance: weight of the token's policy
    gradient. kl: estimate of the distance to the reference, nats; 0 without one. left_out: the policy gradient of the
    token's sequence was left out as too far off policy.
    """

    total: Tensor
    clipped: Tensor
    importance: Tensor
    kl: Tensor
    left_out: Tensor


def needs_old_pass(settings: GrpoSettings) -> bool:
    """Whether the log-probs before the update take a forward of their own; else they are those of the only step."""
    return settings.epochs > 1 or isinstance(settings.entropy, ClipCov | KlCov)


def batch_loss(
    batch: MicroBatch,
    logprobs: Tensor,
    entropy: Tensor,
    old: Tensor,
    reference: Tensor | None,
    chosen: Tensor | None,
    settings: GrpoSettings,
) -> Loss:
    """The sum over tokens of loss_weights (policy gradient + KL term - entropy bonus). All tensors (N,).

    logprobs: current, with gradient. entropy: nats, with gradient where there is a bonus for it. old: log-probs before
    the update. reference: those of the reference policy, where kl.coefficient is not 0. chosen: the tokens Clip-Cov or
    KL-Cov picked. Importance weights and masks act on the policy gradient alone.
    """
    # Behaviour log-probs of another context are no anchor: there, the ratio is always against the learner.
    direct = batch.own_context & (settings.old_policy == "behaviour")
    anchor = torch.where(direct, batch.behaviour_logprobs, old)
    kl, kl_term, advantages = _divergence(batch, logprobs, old, reference, settings)
    losses, clipped = _policy_losses(batch, logprobs, anchor, advantages, settings)
    spared = direct | ((advantages >= 0) & (settings.importance.of == "negative"))
    importance = importance_weights(
        old,
        batch.behaviour_logprobs,
        batch.importance_caps.masked_fill(spared, torch.inf),
        batch.sequences,
        settings.importance.level,
        settings.importance.mode,
    )
    left_out = _left_out(batch, logprobs, settings)
    losses = (losses * importance).masked_fill(left_out, 0.0)
    if chosen is not None and isinstance(settings.entropy, ClipCov):
        losses = torch.where(chosen, losses.detach(), losses)
    if chosen is not None and isinstance(settings.entropy, KlCov):
        losses = losses + settings.entropy.coefficient * (logprobs - anchor).abs() * chosen
    if isinstance(settings.entropy, EntropyBonus):
        losses = losses - settings.entropy.coefficient * entropy
    total = ((losses + kl_term) * batch.loss_weights).sum()
    return Loss(total, clipped, importance, kl, left_out)


def _divergence(
    batch: MicroBatch, logprobs: Tensor, old: Tensor, reference: Tensor | None, settings: GrpoSettings
) -> tuple[Tensor, Tensor | float, Tensor]:
    """The KL estimate without gradient, what it adds to the loss, and the advantages, less k1 where that is chosen."""
    if reference is None:
        return torch.zeros_like(old), 0.0, batch.advantages
    kl = kl_estimates(logprobs, reference, settings.kl.estimator)
    if settings.kl.estimator == "k1":  # its gradient is that of log pi, whatever the reference: it says nothing
        reward = settings.kl.coefficient * kl_estimates(old, reference, "k1")
        return kl.detach(), 0.0, batch.advantages - reward
    return kl.detach(), settings.kl.coefficient * kl, batch.advantages


def _policy_losses(
    batch: MicroBatch, logprobs: Tensor, anchor: Tensor, advantages: Tensor, settings: GrpoSettings
) -> tuple[Tensor, Tensor]:
    low, high = _clip_ranges(batch.streams, settings)
    log_ratios = logprobs - anchor
    if settings.objective == "cispo":
        return cispo(logprobs, log_ratios, advantages, low, high)
    if settings.objective == "gspo":
        log_ratios = sequence_mean(log_ratios, batch.sequences)
    return clipped_surrogate(log_ratios, advantages, low, high, settings.dual_clip)


def _clip_ranges(streams: Tensor, settings: GrpoSettings) -> tuple[Tensor, Tensor]:
    """clip_low and clip_high of each token, by its stream: (N,) each."""
    own = [getattr(settings.streams, stream) for stream in STREAMS]
    low = [settings.clip_low if s.clip_low is None else s.clip_low for s in own]
    high = [settings.clip_high if s.clip_high is None else s.clip_high for s in own]
    table = torch.tensor([low, high], device=streams.device)[:, streams]
    return table[0], table[1]


def _left_out(batch: MicroBatch, logprobs: Tensor, settings: GrpoSettings) -> Tensor:
    limit = settings.importance.max_divergence
    if limit is None:
        return torch.zeros_like(batch.own_context)
    far = off_policy_sequences(logprobs, batch.behaviour_logprobs, batch.advantages, batch.sequences, limit)
    return far & batch.own_context
