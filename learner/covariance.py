"""Which tokens drive the entropy down: those whose log-prob and advantage are high, or low, together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from configs.objectives import ClipCov, KlCov

Numbers = npt.NDArray[np.floating]


def covariances(logprobs: Numbers, advantages: Numbers) -> npt.NDArray[np.float64]:
    """(log pi - mean log pi) (A - mean A) of each token of a batch: (M,) (arXiv 2505.22617)."""
    centred_logprobs, centred_advantages = (
        x.astype(np.float64) - x.mean(dtype=np.float64) for x in (logprobs, advantages)
    )
    return centred_logprobs * centred_advantages


def chosen_tokens(
    logprobs: Numbers, advantages: Numbers, settings: ClipCov | KlCov, seed: int
) -> npt.NDArray[np.bool_]:
    """The tokens that Clip-Cov leaves out or KL-Cov holds (arXiv 2505.22617): (M,).

    logprobs, advantages: (M,) of all trained tokens of the batch. Both choose share M of them, one at least: Clip-Cov
    draws from those with a covariance between `low` and `high`, or takes them all if there are fewer; KL-Cov takes the
    highest. The order of the tokens does not matter: they are sorted before anything is summed or drawn.
    """
    chosen = np.zeros(len(logprobs), np.bool_)
    if not len(chosen):
        return chosen
    order = np.lexsort((advantages, logprobs))
    covariance = covariances(logprobs[order], advantages[order])
    ranked = np.argsort(covariance, kind="stable")
    if isinstance(settings, ClipCov):
        inside = (covariance > settings.low) & (covariance < settings.high)
        ranked = np.random.default_rng(seed).permutation(ranked[inside[ranked]])
    number = max(1, round(settings.share * len(covariance)))
    chosen[order[ranked[-number:]]] = True
    return chosen
