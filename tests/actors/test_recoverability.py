"""The logistic regression behind DDE: its optimum, and what it predicts."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.samplers.recoverability import L2, Recoverability, fit

Features = list[tuple[float, ...]]


def loss(model: Recoverability, features: Features, labels: list[bool]) -> float:
    """sum -log P(label) + L2 / 2 * |w|^2, term by term."""
    result = L2 / 2 * sum(w * w for w in model.weights)
    for x, label in zip(features, labels, strict=True):
        score = sum(w * v for w, v in zip(model.weights, x, strict=True)) + model.bias
        result += math.log1p(math.exp(-score if label else score))
    return result


def drawn(seed: int, count: int, features: int) -> tuple[Features, list[bool]]:
    rng = np.random.default_rng(seed)
    x = rng.random((count, features))
    y = rng.random(count) < 1 / (1 + np.exp(-(x @ np.arange(1, features + 1) - 1)))
    y[:2] = [False, True]
    return [tuple(row) for row in x.tolist()], [bool(label) for label in y]


def test_without_a_fit_all_states_are_alike() -> None:
    model = Recoverability.unfitted(2)
    assert model == Recoverability((0.0, 0.0), 0.0)
    assert model.probabilities(np.array([[0.0, 5.0], [1.0, -3.0]])).tolist() == [0.5, 0.5]


def test_the_probability_is_the_sigmoid_of_a_weighted_sum() -> None:
    model = Recoverability((2.0, -1.0), 0.5)
    got = model.probabilities(np.array([[0.5, 1.0], [1.0, 0.0], [1000.0, 0.0], [-1000.0, 0.0]]))
    np.testing.assert_allclose(got, [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.5)), 1, 0], rtol=1e-12)


def test_labels_that_do_not_depend_on_the_feature_leave_the_share() -> None:
    """Both depths with one of four recovered: no weight, and a bias of log(1/3)."""
    model = fit([(0.2,)] * 4 + [(0.8,)] * 4, [True, False, False, False] * 2)
    assert model.weights[0] == pytest.approx(0, abs=1e-9)
    assert model.bias == pytest.approx(math.log(1 / 3), abs=1e-9)


def test_two_points_by_hand() -> None:
    """x = -1 lost, x = 1 recovered: b = 0 by symmetry, and 2 (sigmoid(w) - 1) + L2 w = 0, so w = 0.674832."""
    model = fit([(-1.0,), (1.0,)], [False, True])
    assert model.bias == pytest.approx(0, abs=1e-9)
    w = model.weights[0]
    assert 2 * (1 / (1 + math.exp(-w)) - 1) + L2 * w == pytest.approx(0, abs=1e-9)
    assert w == pytest.approx(0.674832, abs=1e-6)


@given(seed=st.integers(0, 1000), features=st.integers(1, 3), count=st.integers(2, 60))
def test_the_gradient_is_zero_at_the_fit(seed: int, features: int, count: int) -> None:
    x, y = drawn(seed, count, features)
    model = fit(x, y)
    off = model.probabilities(np.array(x)) - np.array(y)
    slope = [*(np.array(x).T @ off + L2 * np.array(model.weights)), off.sum()]
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_no_other_weights_are_better() -> None:
    """By brute force around it, and by plain gradient descent to the same place."""
    x, y = drawn(5, 40, 2)
    model = fit(x, y)
    best = loss(model, x, y)
    for a, b, c in product((-0.1, -0.001, 0, 0.001, 0.1), repeat=3):
        near = Recoverability((model.weights[0] + a, model.weights[1] + b), model.bias + c)
        assert loss(near, x, y) >= best - 1e-12
    parameters, inputs = np.zeros(3), np.column_stack([np.array(x), np.ones(len(x))])
    for _ in range(20_000):
        off = 1 / (1 + np.exp(-inputs @ parameters)) - np.array(y)
        parameters -= 0.02 * (inputs.T @ off + L2 * np.append(parameters[:2], 0))
    np.testing.assert_allclose([*model.weights, model.bias], parameters, atol=1e-8)


def test_features_that_tell_all_apart_do_not_run_away() -> None:
    """Without the penalty the weights of separable labels would grow for ever; large features need damped steps."""
    for scale in (1.0, 1e3, 1e6):
        model = fit([(scale * i,) for i in range(-5, 5)], [i >= 0 for i in range(-5, 5)])
        chances = model.probabilities(np.array([[-scale], [0.0], [scale]]))
        assert np.isfinite([*model.weights, model.bias]).all()
        assert np.all(np.diff(chances) > 0)


def test_the_same_pivots_give_the_same_fit() -> None:
    x, y = drawn(1, 200, 3)
    assert fit(x, y) == fit(x, y)


@pytest.mark.parametrize("label", [True, False])
def test_one_label_alone_is_refused(label: bool) -> None:
    with pytest.raises(ValueError, match="recovered"):
        fit([(0.1,), (0.2,)], [label, label])
