"""Advantages by hand, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import group_advantages

REWARDS = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("rewards", "centred", "normalised"),
    [
        ([1, 0], [0.5, -0.5], [1, -1]),
        ([1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25], [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
        ([3, 1, 2], [1, -1, 0], [1.5**0.5, -(1.5**0.5), 0]),  # standard deviation of a population: sqrt(2/3)
        ([0.3, 0.3, 0.3], [0, 0, 0], [0, 0, 0]),
        ([-1], [0], [0]),
    ],
)
def test_by_hand(rewards: list[float], centred: list[float], normalised: list[float]) -> None:
    values = np.array(rewards, np.float64)
    np.testing.assert_allclose(group_advantages(values, normalize_std=False), centred, atol=1e-12)
    np.testing.assert_allclose(group_advantages(values, normalize_std=True), normalised, atol=1e-5)


def test_a_tiny_spread_is_not_blown_up_without_end() -> None:
    """epsilon bounds what dividing by the standard deviation can do: 1e-9 apart is no signal."""
    assert np.abs(group_advantages(np.array([0.0, 1e-9]), normalize_std=True)).max() < 1e-3


@given(REWARDS, st.booleans(), st.integers(-4, 4))
def test_what_all_earn_alike_changes_nothing(rewards: list[float], normalize_std: bool, shift: int) -> None:
    values = np.array(rewards)
    advantages = group_advantages(values, normalize_std)
    assert abs(advantages.sum()) < 1e-9
    np.testing.assert_allclose(group_advantages(values + shift, normalize_std), advantages, atol=1e-9)


@given(REWARDS, st.floats(0.5, 8))
def test_the_scale_of_rewards_matters_only_without_the_division(rewards: list[float], scale: float) -> None:
    values = np.array(rewards)
    for normalize_std, expected in (
        (False, scale * group_advantages(values, False)),
        (True, group_advantages(values, True)),
    ):
        np.testing.assert_allclose(group_advantages(scale * values, normalize_std), expected, rtol=1e-4, atol=1e-9)


@given(REWARDS, st.booleans())
def test_the_order_of_members_is_kept(rewards: list[float], normalize_std: bool) -> None:
    order = np.argsort(np.array(rewards), kind="stable")[::-1]
    values = np.array(rewards)
    np.testing.assert_allclose(
        group_advantages(values[order], normalize_std), group_advantages(values, normalize_std)[order], atol=1e-12
    )
