"""Which tokens Clip-Cov and KL-Cov choose, by hand and whatever the order of the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.objectives import ClipCov, KlCov
from learner.covariance import chosen_tokens, covariances

# Means -2 and 0: covariances 2, 0, -2, 2, -2, 0
LOGPROBS = np.array([-1.0, -2.0, -3.0, -3.0, -1.0, -2.0], np.float32)
ADVANTAGES = np.array([2.0, 5.0, 2.0, -2.0, -2.0, -5.0], np.float32)
TOKENS = st.lists(st.tuples(st.floats(-8, 0, width=32), st.floats(-3, 3, width=32)), max_size=60, unique=True)


def test_covariances_by_hand() -> None:
    assert covariances(LOGPROBS, ADVANTAGES).tolist() == [2, 0, -2, 2, -2, 0]


def test_kl_cov_takes_the_highest() -> None:
    for share, expected in ((2 / 6, [0, 3]), (4 / 6, [0, 1, 3, 5]), (1.0, [0, 1, 2, 3, 4, 5])):
        chosen = chosen_tokens(LOGPROBS, ADVANTAGES, KlCov(share=share), seed=0)
        assert np.flatnonzero(chosen).tolist() == expected


def test_clip_cov_draws_among_candidates_only() -> None:
    """One of two candidates, each drawn by some seed; two of two; two where three are asked for; none."""
    settings = ClipCov(share=1 / 6, low=1.0, high=5.0)
    drawn = [np.flatnonzero(chosen_tokens(LOGPROBS, ADVANTAGES, settings, seed)).tolist() for seed in range(20)]
    assert sorted({token for [token] in drawn}) == [0, 3]
    for share in (2 / 6, 3 / 6):
        chosen = chosen_tokens(LOGPROBS, ADVANTAGES, settings.model_copy(update={"share": share}), seed=1)
        assert np.flatnonzero(chosen).tolist() == [0, 3]
    for outside in (ClipCov(share=1, low=2.0, high=5.0), ClipCov(share=1, low=1.0, high=2.0)):  # strict bounds
        assert not chosen_tokens(LOGPROBS, ADVANTAGES, outside, seed=0).any()


@pytest.mark.parametrize("settings", [ClipCov(share=1e-6, low=1.0, high=5.0), KlCov(share=1e-6)])
def test_the_smallest_share_is_one_token(settings: ClipCov | KlCov) -> None:
    assert chosen_tokens(LOGPROBS, ADVANTAGES, settings, seed=0).sum() == 1


@pytest.mark.parametrize("settings", [ClipCov(), KlCov()])
def test_a_batch_without_tokens(settings: ClipCov | KlCov) -> None:
    assert chosen_tokens(np.zeros(0), np.zeros(0), settings, seed=0).tolist() == []


@given(TOKENS, st.randoms(use_true_random=False), st.floats(0.01, 1), st.integers(0, 2**63 - 1))
def test_the_order_of_tokens_does_not_matter(
    tokens: list[tuple[float, float]], random: np.random.RandomState, share: float, seed: int
) -> None:
    logprobs, advantages = np.array(tokens, np.float32).reshape(-1, 2).T
    order = list(range(len(tokens)))
    random.shuffle(order)
    for settings in (ClipCov(share=share, low=0.1, high=4.0), KlCov(share=share)):
        chosen = chosen_tokens(logprobs, advantages, settings, seed)
        assert chosen_tokens(logprobs[order], advantages[order], settings, seed).tolist() == chosen[order].tolist()
        assert chosen_tokens(logprobs, advantages, settings, seed).tolist() == chosen.tolist()
        assert chosen.sum() <= max(1, round(share * len(tokens)))
