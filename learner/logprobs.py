"""Log-probs of tokens from a model's logits, in float32 and without a float32 copy of many logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Elements of logits: as many are worked on at once, and beyond as many float32 copies are not kept for the backward.
CHUNK, MANY = 2**24, 2**26


def token_logprobs(
    logits: Tensor, token_ids: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """log pi(token) and the entropy (nats) at each position, of the distribution that was sampled from: (N,) each.

    logits: (N, V), of any precision, of the positions before the tokens; token_ids: (N,). The entropy has no gradient
    unless it is asked for. Beyond MANY logits one chunk of positions after another is cast to float32, and again in the
    backward: memory then holds the logits, their gradient and one chunk.
    """
    if logits.numel() <= MANY:
        return _of_chunk(logits, token_ids, temperature, entropy_gradient)
    size = max(1, CHUNK // logits.shape[-1])
    # split, and not slices: the backward of a slice makes a gradient of all logits, that of split joins the chunks'.
    parts = [
        checkpoint(_of_chunk, *part, temperature, entropy_gradient, use_reentrant=False, preserve_rng_state=False)
        for part in zip(logits.split(size), token_ids.split(size), strict=True)
    ]
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _of_chunk(logits: Tensor, token_ids: Tensor, temperature: float, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(-1)
    logprobs = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (scaled - normaliser.unsqueeze(-1)).exp()
        return logprobs, normaliser - (probabilities * scaled).sum(-1)
