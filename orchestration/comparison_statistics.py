"""Means over seeds with their 95 % intervals, and curves of several runs on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

GRID_POINTS = 41
Curve = Sequence[tuple[float, float]]  # (generated tokens, value), tokens not falling


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over `seeds` values and its 95 % interval, None where there is one value only."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def interval(values: Sequence[float]) -> Interval:
    """mean +- t * s / sqrt(n), s with n - 1 in the denominator and t Student's for n - 1 degrees of freedom."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, None, n)
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """Mean difference values - others over the seeds that both have, with its interval; None without such seeds."""
    both = [values[seed] - others[seed] for seed in values if seed in others]
    return interval(both) if both else None


def t_quantile(freedom: int, probability: float = 0.95) -> float:
    """t with P(|T| <= t) = probability for Student's T of so many degrees of freedom, by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, freedom) < probability else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _central_probability(angle: float, freedom: int) -> float:
    """P(|T| <= tan(angle) * sqrt(freedom)), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cosine * cosine * i / (i + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def token_grid(tokens: int) -> list[float]:
    """Where curves are compared: equal steps from none to the whole budget."""
    return [tokens * i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]


def on_grid(curve: Curve, grid: Sequence[float]) -> list[float | None]:
    """The curve's values at the grid's tokens, on straight lines between its points; None before and behind them."""
    if not curve:
        return [None] * len(grid)
    xs, ys = zip(*curve, strict=True)
    found = np.interp(grid, xs, ys, left=np.nan, right=np.nan)
    return [None if np.isnan(value) else float(value) for value in found]


def band(curves: Sequence[Sequence[float | None]]) -> list[Interval | None]:
    """The interval over runs at each point of the grid; None where a run has no value, lest the mean jumps there."""
    columns = [[value for value in column if value is not None] for column in zip(*curves, strict=True)]
    return [interval(column) if len(column) == len(curves) else None for column in columns]
