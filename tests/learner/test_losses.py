"""Losses of single tokens by hand, their gradients, and what happens far outside of the clip range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import cispo, clipped_surrogate, kl_estimates

INF = float("inf")
LOW, HIGH = torch.tensor(0.2), torch.tensor(0.3)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def logs(*values: float) -> Tensor:
    return torch.tensor(values).log()


def gradient(losses: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), of, retain_graph=True)[0]


# --- PPO's clip ------------------------------------------------------------------------------------------------------


def test_the_clipped_surrogate_by_hand() -> None:
    """Ratios 1/2, 1, 3/2 in [0.8, 1.3]. A = 2: -min(1, 1.6), -2, -min(3, 2.6). A = -2: 1.6, 2, 3."""
    ratios = logs(0.5, 1.0, 1.5, 0.5, 1.0, 1.5).requires_grad_()
    advantages = tensor(2, 2, 2, -2, -2, -2)
    losses, clipped = clipped_surrogate(ratios, advantages, LOW, HIGH)
    torch.testing.assert_close(losses, tensor(-1, -2, -2.6, 1.6, 2, 3))
    assert clipped.tolist() == [False, False, True, True, False, False]
    # d(-r A) / d log r = -r A inside, nothing where the clip is active
    torch.testing.assert_close(gradient(losses, ratios), tensor(-1, -2, 0, 0, 2, 3))


def test_dual_clip_bounds_what_a_negative_advantage_costs() -> None:
    """Ratios 1, 2, 5 with A = -2 cost 2, 4, 10; with a dual clip of 3 at most 6. A positive A is as before."""
    ratios = logs(1.0, 2.0, 5.0, 5.0).requires_grad_()
    losses, clipped = clipped_surrogate(ratios, tensor(-2, -2, -2, 2), LOW, HIGH, dual_clip=3.0)
    torch.testing.assert_close(losses, tensor(2, 4, 6, -2.6))
    assert clipped.tolist() == [False, False, True, True]
    torch.testing.assert_close(gradient(losses, ratios), tensor(2, 4, 0, 0))


def test_every_token_has_its_own_range() -> None:
    losses, _ = clipped_surrogate(logs(2.0, 2.0), tensor(1, 1), tensor(0.2, 0.2), tensor(0.25, 0.5))
    torch.testing.assert_close(losses, tensor(-1.25, -1.5))


def test_without_an_advantage_nothing_is_lost_or_clipped() -> None:
    ratios = tensor(-100, 0, 100).requires_grad_()
    losses, clipped = clipped_surrogate(ratios, tensor(0, 0, 0), LOW, HIGH)
    assert (losses.tolist(), clipped.any().item()) == ([0, 0, 0], False)
    assert gradient(losses, ratios).tolist() == [0, 0, 0]


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-5, 5)), min_size=1), st.floats(1.1, 10) | st.none())
def test_bounds_on_the_log_ratio_are_the_minimum_of_the_papers(
    tokens: list[tuple[float, float]], dual: float | None
) -> None:
    log_ratios, advantages = torch.tensor(tokens).T
    ratios = log_ratios.exp()
    objective = torch.minimum(ratios * advantages, ratios.clamp(1 - LOW, 1 + HIGH) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, objective.maximum(dual * advantages), objective)
    losses, clipped = clipped_surrogate(log_ratios, advantages, LOW, HIGH, dual)
    torch.testing.assert_close(losses, -objective, rtol=1e-5, atol=1e-6)
    assert bool((losses[~clipped] == (-ratios * advantages)[~clipped]).all())


def test_what_a_bound_holds_neither_overflows_nor_lacks_a_gradient() -> None:
    """exp(100) is no float32. Infinite only where nothing bounds the ratio; the learner then leaves out the step."""
    ratios = tensor(100, -100, 100, -100).requires_grad_()
    advantages = tensor(1, 1, -1, -1)
    losses, _ = clipped_surrogate(ratios, advantages, LOW, HIGH, dual_clip=3.0)
    torch.testing.assert_close(losses, tensor(-1.3, 0, 3, 0.8))
    assert gradient(losses, ratios).tolist() == pytest.approx([0, 0, 0, 0], abs=1e-30)
    losses, _ = clipped_surrogate(ratios, advantages, LOW, HIGH)
    torch.testing.assert_close(losses, tensor(-1.3, 0, INF, 0.8))
    assert gradient(losses, ratios)[2].item() == INF


def test_a_lower_range_of_one_or_more_is_no_lower_bound() -> None:
    for low in (1.0, 5.0):
        losses, clipped = clipped_surrogate(logs(1e-6), tensor(-1), torch.tensor(low), HIGH)
        torch.testing.assert_close(losses, tensor(1e-6))
        assert not clipped.any()


def test_narrow_ranges_are_kept_exactly() -> None:
    """GSPO's are 3e-4 and 4e-4: the bound must be right to more than float32's steps around 1."""
    losses, clipped = clipped_surrogate(tensor(5e-4, 3.9e-4), tensor(1, 1), torch.tensor(3e-4), torch.tensor(4e-4))
    torch.testing.assert_close(losses, tensor(-1.0004, -1.00039), rtol=1e-7, atol=0)
    assert clipped.tolist() == [True, False]


# --- CISPO -----------------------------------------------------------------------------------------------------------


def test_cispo_weighs_the_logprob_by_a_clipped_constant() -> None:
    """pi = 1/4, A = 2, ratios 1/2, 1, 2 clipped to 0.8, 1, 1.3: the loss is 2 log(4) times that, its slope -2 times."""
    current, old = logs(0.25, 0.25, 0.25).requires_grad_(), logs(0.5, 0.25, 0.125)
    losses, clipped = cispo(current, current - old, tensor(2, 2, 2), LOW, HIGH)
    weights = tensor(0.8, 1.0, 1.3)
    torch.testing.assert_close(losses, 2 * math.log(4) * weights)
    torch.testing.assert_close(gradient(losses, current), -2 * weights)
    assert clipped.tolist() == [True, False, True]


def test_cispo_is_bounded_on_both_sides_of_zero_advantage() -> None:
    current = tensor(-1, -101, -1, -101).requires_grad_()
    log_ratios = current - tensor(-101, -1, -101, -1)
    losses, _ = cispo(current, log_ratios, tensor(1, 1, -1, -1), torch.tensor(1.0), HIGH)
    torch.testing.assert_close(losses, tensor(1.3, 0, -1.3, 0))
    assert gradient(losses, current).tolist() == pytest.approx([-1.3, 0, 1.3, 0], abs=1e-6)


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_estimates_by_hand() -> None:
    """pi = 1/2, reference 1/4: d = -log 2. Slopes by log pi: 1, -d, and 1 - e^d = 1/2."""
    for estimator, value, slope in (
        ("k1", math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, math.log(2)),
        ("k3", 0.5 - 1 + math.log(2), 0.5),
    ):
        current = logs(0.5).requires_grad_()
        kl = kl_estimates(current, logs(0.25), estimator)  # type: ignore[arg-type]
        torch.testing.assert_close(kl, tensor(value))
        torch.testing.assert_close(gradient(kl, current), tensor(slope))


def test_k1_and_k3_are_unbiased_and_k2_has_the_right_gradient() -> None:
    """Expectations over (1/2, 1/3, 1/6), reference uniform: KL = sum of p log(p / q)."""
    logits, reference = logs(0.5, 1 / 3, 1 / 6).requires_grad_(), logs(1 / 3, 1 / 3, 1 / 3)
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    kl = (probabilities * (logprobs - reference)).sum()
    for estimator in ("k1", "k3"):
        expected = (probabilities * kl_estimates(logprobs, reference, estimator)).sum()
        torch.testing.assert_close(expected, kl)
    sampled = (probabilities.detach() * kl_estimates(logprobs, reference, "k2")).sum()
    torch.testing.assert_close(gradient(sampled, logits), gradient(kl, logits))


def test_k3_of_close_policies_does_not_cancel() -> None:
    """d = 1e-3: e^d - 1 - d = d^2 / 2 + d^3 / 6; in float32 e^d alone is wrong by a tenth of that."""
    torch.testing.assert_close(kl_estimates(tensor(0), tensor(1e-3), "k3"), tensor(5.0017e-7), rtol=1e-3, atol=0)
