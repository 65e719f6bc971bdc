"""How likely a state of a failed trajectory can still be played to success: a logistic regression on a few features.

DEEP-GRPO (arXiv 2602.14169): P(success | x) = sigmoid(w . x + b), fitted to the pivots tried so far, label 1 where any
continuation succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Of sum of log losses + L2 / 2 * |w|^2; the bias is free. The paper's code leaves scikit-learn's C = 1 / L2 at 1.
L2 = 1.0
MOST_STEPS = 100
SMALLEST_STEP = 1e-10


@dataclass(frozen=True, slots=True)
class Recoverability:
    """weights: (features,)."""

    weights: tuple[float, ...]
    bias: float = 0.0

    @classmethod
    def unfitted(cls, features: int) -> Recoverability:
        """Gives every state the same probability."""
        return cls((0.0,) * features)

    def probabilities(self, features: Array) -> Array:
        """features: (n, features); result: (n,)."""
        return _sigmoid(features @ np.array(self.weights) + self.bias)


def fit(features: Sequence[Sequence[float]], labels: Sequence[bool]) -> Recoverability:
    """The regression of labels (n,) on features (n, features), by Newton's method from zero.

    Raises ValueError unless both labels are there: without a penalty on it the bias would have no end.
    """
    if len(set(labels)) < 2:
        raise ValueError("recoverability needs pivots that were recovered and pivots that were not")
    inputs = np.column_stack([np.asarray(features, np.float64), np.ones(len(labels))])
    targets = np.asarray(labels, np.float64)
    parameters = np.zeros(inputs.shape[1])
    for _ in range(MOST_STEPS):
        step = np.linalg.solve(_hessian(parameters, inputs), _gradient(parameters, inputs, targets))
        parameters, size = _descended(parameters, np.asarray(step, np.float64), inputs, targets)
        if size < SMALLEST_STEP:
            break
    *weights, bias = parameters.tolist()
    return Recoverability(tuple(weights), bias)


def _descended(parameters: Array, step: Array, inputs: Array, targets: Array) -> tuple[Array, float]:
    """Parameters after the longest of step, step / 2, step / 4, ... that does not raise the loss, and its size."""
    before = _loss(parameters, inputs, targets)
    size = float(np.abs(step).max())
    while size >= SMALLEST_STEP:
        after = parameters - step
        if _loss(after, inputs, targets) <= before:
            return after, size
        step, size = step / 2, size / 2
    return parameters, 0.0


def _loss(parameters: Array, inputs: Array, targets: Array) -> float:
    scores = inputs @ parameters
    return float(np.logaddexp(0, np.where(targets > 0, -scores, scores)).sum() + L2 / 2 * (parameters[:-1] ** 2).sum())


def _gradient(parameters: Array, inputs: Array, targets: Array) -> Array:
    return inputs.T @ (_sigmoid(inputs @ parameters) - targets) + L2 * _weights_alone(parameters)


def _hessian(parameters: Array, inputs: Array) -> Array:
    chances = _sigmoid(inputs @ parameters)
    curvature: Array = (inputs * (chances * (1 - chances))[:, None]).T @ inputs
    return curvature + L2 * np.diag(_weights_alone(np.ones_like(parameters)))


def _weights_alone(parameters: Array) -> Array:
    """The parameters with zero for the bias, which is the last."""
    return np.append(parameters[:-1], 0.0)


def _sigmoid(scores: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0, -scores))  # no overflow at either end
    return result
