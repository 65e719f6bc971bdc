"""All figures of one policy on the held-out episodes, each with a 95 % interval; pure.

Intervals are percentiles of the bootstrap (Efron 1979): episodes are drawn again, with replacement, 2,000 times from a
fixed seed, and the same draws serve all figures. They say how much depends on which episodes were held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestration.evaluation import (
    Curve,
    HeldOut,
    Judged,
    Sample,
    chances,
    coverages,
    distinct_at_k,
    entropy,
    first_k,
)

RESAMPLES = 2000
RATIO_K = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """low, high: ends of the 95 % interval; NaN where there are not two values to draw from."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures of a policy; k of the curves counts samples.

    success: share of samples that solve their episode. pass_at_k, distinct_at_k: of k samples drawn from all of an
    episode's. first_pass_at_k, first_distinct_at_k: of the first k of a list; empty for plain samples, whose order says
    nothing. coverage: of all samples, coverage_at_k: of k samples of one list, where episodes have their right answers
    in common, else empty. pass_ratio: pass@16 / pass@1; None where there are fewer samples or nothing is solved.
    by_episode: ticket index -> share of solved samples.
    """

    success: Figure
    pass_at_k: Mapping[int, Figure]
    first_pass_at_k: Mapping[int, Figure]
    pass_ratio: Figure | None
    distinct_solutions: Figure
    distinct_at_k: Mapping[int, Figure]
    first_distinct_at_k: Mapping[int, Figure]
    coverage: Figure
    coverage_at_k: Mapping[int, Figure]
    answer_entropy: Figure
    by_episode: Mapping[int, float]
    episodes: int
    unjudged: int
    cause: str
    sampled_tokens: int
    env_steps: int


class Bootstrap:
    """Means over `units` values with their intervals."""

    def __init__(self, units: int) -> None:
        rng = np.random.default_rng(0)
        # How often each unit is in each resample: (RESAMPLES, units).
        self._weights = rng.multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(float)

    def means(self, values: Curve) -> list[Figure]:
        """A figure for each column of values (units, m); NaN: the unit has none of that column."""
        means, resampled, known = self._of_all(values), self._resampled(values), (~np.isnan(values)).sum(axis=0)
        return [self._figure(mean, resampled[:, i], known[i]) for i, mean in enumerate(means)]

    def mean(self, values: Curve) -> Figure:
        """The figure of values (units,)."""
        return self.means(values[:, None])[0]

    def ratio(self, over: Curve, under: Curve) -> Figure | None:
        """Of the means of two (units,); resamples in which `under` is 0 have none. None where its mean is 0."""
        both = np.stack([over, under], axis=1)
        means, resampled = self._of_all(both), self._resampled(both)
        if not means[1] > 0:
            return None
        there = resampled[:, 1] > 0
        known = (~np.isnan(both)).all(axis=1).sum()
        return self._figure(means[0] / means[1], resampled[there, 0] / resampled[there, 1], known)

    def _of_all(self, values: Curve) -> Curve:
        """(m,) means of those that are there, at least one a column."""
        mean: Curve = np.nanmean(values, axis=0)
        return mean

    def _resampled(self, values: Curve) -> Curve:
        """(RESAMPLES, m); NaN where a resample has none."""
        there = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            means: Curve = (self._weights @ np.where(there, values, 0.0)) / (self._weights @ there)
        return means

    def _figure(self, mean: float, resampled: npt.NDArray[np.float64], known: int) -> Figure:
        """known: values the mean is of. Resamples of one value are all alike: they would tell of no doubt."""
        if known < 2:
            return Figure(float(mean), math.nan, math.nan)
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
        return Figure(float(mean), float(low), float(high))


def judge(sampled: HeldOut, list_length: int | None, targets: int | None) -> Judgement:
    """list_length: solutions asked for in a list, None for plain samples. targets: as of `evaluation.coverages`."""
    episodes = sampled.episodes
    samples = [episode.samples for episode in episodes]
    bootstrap = Bootstrap(len(episodes))
    shares = np.array([sum(s.solved for s in one) / len(one) for one in samples])
    passes = _table([chances(len(one), sum(s.solved for s in one)) for one in samples])
    distinct = _table([distinct_at_k(one) for one in samples])
    first_passes, first_distinct = _in_order(episodes, list_length or 0)
    in_one_list = distinct if list_length is None else first_distinct
    covered = coverages(episodes, targets)
    enough = passes.shape[1] >= RATIO_K
    return Judgement(
        success=bootstrap.mean(shares),
        pass_at_k=_curve(bootstrap.means(passes)),
        first_pass_at_k=_curve(bootstrap.means(first_passes)),
        pass_ratio=bootstrap.ratio(passes[:, RATIO_K - 1], passes[:, 0]) if enough else None,
        distinct_solutions=bootstrap.mean(_of_each(samples, lambda one: len({s.answer for s in one if s.solved}))),
        distinct_at_k=_curve(bootstrap.means(distinct)),
        first_distinct_at_k=_curve(bootstrap.means(first_distinct)),
        # Drawn again by question: a resample of the samples of one question finds fewer answers than they did.
        coverage=Bootstrap(len(covered)).mean(covered),
        coverage_at_k=_curve(bootstrap.means(in_one_list / targets)) if targets is not None else {},
        answer_entropy=bootstrap.mean(_of_each(samples, lambda one: entropy(s.answer for s in one))),
        by_episode={episode.index: float(share) for episode, share in zip(episodes, shares, strict=True)},
        episodes=len(episodes),
        unjudged=sampled.unjudged,
        cause=sampled.cause,
        sampled_tokens=sampled.sampled_tokens,
        env_steps=sampled.env_steps,
    )


def gain(first: Judgement, other: Judgement) -> Figure | None:
    """Gain of success over the first policy: the mean difference over episodes both were judged on, paired.

    None when there is no such episode.
    """
    both = [i for i in first.by_episode if i in other.by_episode]
    if not both:
        return None
    return Bootstrap(len(both)).mean(np.array([other.by_episode[i] - first.by_episode[i] for i in both]))


def _of_each(samples: Sequence[list[Sample]], figure: Callable[[list[Sample]], float]) -> Curve:
    return np.array([figure(one) for one in samples], dtype=float)


def _in_order(episodes: Sequence[Judged], length: int) -> tuple[Curve, Curve]:
    """Both (episodes, length): see `first_k`."""
    both = np.array([first_k(episode, length) for episode in episodes])
    return both[:, 0], both[:, 1]


def _table(curves: Sequence[Curve]) -> Curve:
    """(episodes, most samples), NaN behind the samples an episode has."""
    table = np.full((len(curves), max(map(len, curves))), math.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    return table


def _curve(figures: Sequence[Figure]) -> dict[int, Figure]:
    """By k, from 1."""
    return dict(enumerate(figures, start=1))
