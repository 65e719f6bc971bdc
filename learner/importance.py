"""How far the policy that is trained is from the one that sampled: weights and masks, constants to the gradient.

Tensors are (N,) of trained tokens; `sequences` numbers the sequence of each from 0, in any order and with gaps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sequence_sum(values: Tensor, sequences: Tensor) -> Tensor:
    """At each token the sum over the tokens of its sequence; with a gradient. Summed in float64: sequences are long."""
    number = int(sequences.max()) + 1 if len(sequences) else 0
    sums = values.new_zeros(number, dtype=torch.float64).index_add(0, sequences, values.double())
    return sums[sequences].to(values.dtype)


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """At each token the mean over the tokens of its sequence; with a gradient."""
    return sequence_sum(values, sequences) / sequence_sum(torch.ones_like(values), sequences)


def importance_weights(
    old: Tensor,
    behaviour: Tensor,
    caps: Tensor,
    sequences: Tensor,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
) -> Tensor:
    """Weights that make up for tokens sampled by pi_behaviour and not by pi_old: (N,); 1 where the cap is infinite.

    The ratio is pi_old / pi_behaviour of a token, or of its sequence: the product over its tokens. Beyond the cap it
    counts as the cap (truncate: IMPALA, arXiv 1802.01561) or is nought (mask). caps: (N,).
    """
    log_ratios = (old - behaviour).detach()
    if level == "sequence":
        log_ratios = sequence_sum(log_ratios, sequences)
    most = caps.log()
    weights = log_ratios.minimum(most).exp()
    if mode == "mask":
        weights = weights.masked_fill(log_ratios > most, 0.0)
    return weights.masked_fill(caps.isinf(), 1.0)


def off_policy_sequences(
    logprobs: Tensor, behaviour: Tensor, advantages: Tensor, sequences: Tensor, max_divergence: float
) -> Tensor:
    """Which tokens have A < 0 and a sequence whose mean log(pi_behaviour / pi) is above max_divergence: (N,) bool.

    Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556, section 3.1): bad answers that the policy would hardly
    give any more teach nothing and may do harm.
    """
    divergence = sequence_mean((behaviour - logprobs).detach(), sequences)
    return (advantages < 0) & (divergence > max_divergence)
