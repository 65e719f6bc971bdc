"""Importance weights and off-policy masks by hand; sequences in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.importance import importance_weights, off_policy_sequences, sequence_mean, sequence_sum

INF = float("inf")
ONE_EACH = torch.arange(3)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def logs(*values: float) -> Tensor:
    return torch.tensor(values).log()


def test_sums_and_means_by_sequence_in_any_order() -> None:
    """Sequences 2, 0, 2, 2, 0 of 1 .. 5; number 1 has no tokens."""
    values, sequences = tensor(1, 2, 3, 4, 5).requires_grad_(), torch.tensor([2, 0, 2, 2, 0])
    assert sequence_sum(values, sequences).tolist() == [8, 7, 8, 8, 7]
    torch.testing.assert_close(sequence_mean(values, sequences), tensor(8 / 3, 3.5, 8 / 3, 8 / 3, 3.5))
    [slopes] = torch.autograd.grad((sequence_mean(values, sequences) * tensor(1, 0, 0, 0, 10)).sum(), values)
    torch.testing.assert_close(slopes, tensor(1 / 3, 5, 1 / 3, 1 / 3, 5))


def test_sums_of_nothing_and_of_very_long_sequences() -> None:
    assert sequence_sum(torch.zeros(0), torch.zeros(0, dtype=torch.long)).tolist() == []
    values = torch.full((100_000,), 0.1)
    total = sequence_sum(values, torch.zeros(100_000, dtype=torch.long))
    assert total[0].item() == pytest.approx(100_000 * float(torch.tensor(0.1)), rel=1e-7)


@pytest.mark.parametrize(("mode", "beyond"), [("truncate", 2.0), ("mask", 0.0)])
def test_a_tokens_ratio_up_to_the_cap_of_its_row(mode: str, beyond: float) -> None:
    """Ratios 1/2, 1, 3: with a cap of 2 the last is beyond it, with 4 it is not."""
    old, behaviour = logs(0.25, 0.5, 0.75), logs(0.5, 0.5, 0.25)
    for cap, last in ((2.0, beyond), (4.0, 3.0)):
        weights = importance_weights(old, behaviour, torch.full((3,), cap), ONE_EACH, "token", mode)  # type: ignore[arg-type]
        torch.testing.assert_close(weights, tensor(0.5, 1.0, last))


@pytest.mark.parametrize(("mode", "beyond"), [("truncate", 3.0), ("mask", 0.0)])
def test_a_sequences_ratio_is_the_product_over_its_tokens(mode: str, beyond: float) -> None:
    """Tokens of ratio 2, 1/2, 2, 1 in sequences 0, 1, 0, 1: products 4 and 1/2, cap 3."""
    old, sequences = logs(2.0, 0.5, 2.0, 1.0), torch.tensor([0, 1, 0, 1])
    weights = importance_weights(old, torch.zeros(4), torch.full((4,), 3.0), sequences, "sequence", mode)  # type: ignore[arg-type]
    torch.testing.assert_close(weights, tensor(beyond, 0.5, beyond, 0.5))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_infinite_cap_corrects_nothing_and_a_finite_one_bounds_what_overflows(level: str, mode: str) -> None:
    old, behaviour = tensor(0.0, -9.0, 0.0), tensor(-100.0, 91.0, -1e9)
    weights = importance_weights(old, behaviour, torch.full((3,), INF), ONE_EACH, level, mode)  # type: ignore[arg-type]
    assert weights.tolist() == [1, 1, 1]
    weights = importance_weights(old, behaviour, torch.full((3,), 2.0), ONE_EACH, level, mode)  # type: ignore[arg-type]
    most = 2.0 if mode == "truncate" else 0.0
    assert weights.tolist() == pytest.approx([most, 0, most], abs=1e-30)


def test_weights_are_constants_to_the_gradient() -> None:
    old = logs(0.5).requires_grad_()
    assert not importance_weights(old, logs(1.0), tensor(2.0), torch.tensor([0]), "sequence", "mask").requires_grad


def test_bad_sequences_that_are_far_off_policy_are_left_out() -> None:
    """Mean log(behaviour / pi): log(4) / 2 = 0.69 and 0. The limit is a strict one and A >= 0 is never left out."""
    current, behaviour = logs(0.125, 0.5, 0.5, 0.5), logs(0.5, 0.5, 0.5, 0.5)
    sequences = torch.tensor([0, 1, 0, 1])
    for advantage, limit, expected in ((-1.0, 0.6, True), (-1.0, 0.7, False), (1.0, 0.6, False), (0.0, 0.6, False)):
        found = off_policy_sequences(current, behaviour, torch.full((4,), advantage), sequences, limit)
        assert found.tolist() == [expected, False, expected, False]


def test_a_mean_at_the_limit_stays() -> None:
    current, behaviour = tensor(-1.0, -1.0), tensor(-0.5, -0.5)
    assert not off_policy_sequences(current, behaviour, tensor(-1, -1), torch.tensor([0, 0]), 0.5).any()
    assert off_policy_sequences(current, behaviour, tensor(-1, -1), torch.tensor([0, 0]), 0.4999).all()
