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


@dataclass(frozen=True, slots=True)
class Ratio:
    """Mean of some values over the mean of others, of the same seeds. by_seed: seed -> ratio, None where the other is
    not above 0. low, high: 95 % interval, None where there is no bounded one.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    by_seed: Mapping[str, float | None]


def ratio(values: Mapping[int, float], others: Mapping[int, float]) -> Ratio | None:
    """Over the seeds that both have; None without such seeds, and where the mean of the others is not above 0.

    The interval is Fieller's (1954): all R for which Student's t of the differences values - R * others does not tell
    their mean from 0. It is bounded where that of the others' own mean does not reach 0.
    """
    seeds = [seed for seed in values if seed in others]
    ys, xs = [values[seed] for seed in seeds], [others[seed] for seed in seeds]
    if not seeds or fmean(xs) <= 0:
        return None
    by_seed = {str(seed): y / x if x > 0 else None for seed, y, x in zip(seeds, ys, xs, strict=True)}
    low, high = _fieller(ys, xs) or (None, None)
    return Ratio(fmean(ys) / fmean(xs), low, high, len(seeds), by_seed)


def _fieller(ys: Sequence[float], xs: Sequence[float]) -> tuple[float, float] | None:
    """Both ends of a bounded interval of the ratio of the means of y and x, pairs: the roots of a R^2 - 2 b R + c."""
    n = len(xs)
    if n < 2:
        return None
    y, x = fmean(ys), fmean(xs)
    share = t_quantile(n - 1) ** 2 / (n * (n - 1))  # t^2 / n times the 1 / (n - 1) of variances and covariance
    a = x * x - share * sum((u - x) ** 2 for u in xs)
    b = x * y - share * sum((u - x) * (v - y) for u, v in zip(xs, ys, strict=True))
    c = y * y - share * sum((v - y) ** 2 for v in ys)
    if a <= 0:
        return None
    half = math.sqrt(max(b * b - a * c, 0.0))
    return (b - half) / a, (b + half) / a


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
