"""Means over seeds, their intervals, and curves on one axis: numbers worked by hand and from tables."""

from __future__ import annotations

import math

import pytest

from orchestration.comparison_statistics import (
    GRID_POINTS,
    Interval,
    band,
    interval,
    on_grid,
    paired,
    ratio,
    t_quantile,
    token_grid,
)


@pytest.mark.parametrize(
    ("freedom", "tabled"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_t_is_that_of_the_tables(freedom: int, tabled: float) -> None:
    assert t_quantile(freedom) == pytest.approx(tabled, abs=5e-4)


def test_other_probabilities() -> None:
    assert t_quantile(1, 0.5) == pytest.approx(1.0)  # Cauchy's quartile
    assert t_quantile(2, 0.99) == pytest.approx(9.925, abs=5e-4)


def test_an_interval_by_hand() -> None:
    # mean 0.5, s = sqrt((0.01 + 0 + 0.01) / 2) = 0.1, half = 4.302653 * 0.1 / sqrt(3) = 0.2484138
    found = interval([0.4, 0.5, 0.6])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2515862, 0.7484138), abs=1e-6)
    assert found.seeds == 3


def test_two_seeds_by_hand() -> None:
    # s = |a - b| / sqrt(2), so half = 12.7062 * |a - b| / 2
    found = interval([1.0, 3.0])
    assert (found.mean, found.low) == pytest.approx((2.0, 2.0 - 12.7062), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert interval([0.4]) == Interval(0.4, None, None, 1)


def test_differences_are_taken_seed_by_seed() -> None:
    # Seed 5 is in one of them only. Differences 0.1 and 0.1: no spread, whatever the seeds' own.
    found = paired({0: 0.2, 1: 0.9, 5: 7.0}, {1: 0.8, 0: 0.1})
    assert found is not None
    assert (found.mean, found.low, found.high, found.seeds) == (*[pytest.approx(0.1)] * 3, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_a_ratio_is_of_the_means_over_the_seeds_that_both_have() -> None:
    found = ratio({0: 0.4, 1: 0.5, 7: 9.0}, {1: 0.3, 0: 0.1, 8: 9.0})
    assert found is not None
    assert found.mean == pytest.approx(0.45 / 0.2)
    assert found.seeds == 2
    assert found.by_seed == {"0": pytest.approx(4.0), "1": pytest.approx(5 / 3)}
    # The others' mean is 0.2 +- 12.7 * 0.1: it may be 0, and so may the ratio be anything.
    assert (found.low, found.high) == (None, None)


def test_fiellers_interval_by_hand() -> None:
    # Others without spread: Student's interval of the values, divided. s = 2, half = 4.302653 * 2 / sqrt(3) / 10.
    found = ratio({0: 18.0, 1: 20.0, 2: 22.0}, {0: 10.0, 1: 10.0, 2: 10.0})
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 0.4968275, 2 + 0.4968275), abs=1e-6)
    # Twice the others at each seed, whatever theirs are: no doubt.
    found = ratio({0: 18.0, 1: 20.0, 2: 22.0}, {0: 9.0, 1: 10.0, 2: 11.0})
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2.0, 2.0), abs=1e-6)


def test_at_the_ends_of_fiellers_interval_students_t_is_at_its_bound() -> None:
    ys, xs = [0.31, 0.52, 0.47, 0.38], [0.12, 0.2, 0.15, 0.17]
    found = ratio(dict(enumerate(ys)), dict(enumerate(xs)))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    below, above = (interval([y - end * x for y, x in zip(ys, xs, strict=True)]) for end in (found.low, found.high))
    assert below.low == pytest.approx(0.0, abs=1e-9)  # values mostly above `low` times the others
    assert above.high == pytest.approx(0.0, abs=1e-9)


def test_where_there_is_no_ratio() -> None:
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert ratio({0: 1.0, 1: 1.0}, {0: -0.3, 1: 0.3}) is None
    found = ratio({0: 1.0, 1: 1.0}, {0: -0.1, 1: 0.3})
    assert found is not None
    assert found.by_seed == {"0": None, "1": pytest.approx(1 / 0.3)}
    alone = ratio({0: 1.0}, {0: 0.5})
    assert alone is not None
    assert (alone.mean, alone.low, alone.seeds) == (2.0, None, 1)


def test_the_grid_goes_from_nothing_to_the_budget() -> None:
    grid = token_grid(400)
    assert (grid[0], grid[1], grid[-1], len(grid)) == (0, 10, 400, GRID_POINTS)


def test_a_curve_is_straight_between_its_points_and_nowhere_beyond() -> None:
    curve = [(10.0, 1.0), (20.0, 3.0), (40.0, 2.0)]
    assert on_grid(curve, [0, 10, 15, 30, 40, 41]) == [None, 1.0, 2.0, 2.5, 2.0, None]
    assert on_grid([], [0, 1]) == [None, None]


def test_the_band_is_there_where_every_run_is() -> None:
    points = band([[None, 0.4, 0.4], [0.1, 0.6, 0.4]])
    assert points[0] is None
    assert points[1] is not None
    assert points[1].mean == 0.5
    assert points[1].high == pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4)
    assert points[2] is not None
    assert math.isclose(points[2].high or 0, 0.4)
