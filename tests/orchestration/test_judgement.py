"""A policy's figures and their intervals, by hand and against what resampling must give."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs.schema import RunConfig
from orchestration.evaluation import HeldOut, Judged, Sample
from orchestration.judgement import Bootstrap, Figure, Judgement, gain, judge
from orchestration.judgement_output import document, show, write
from orchestration.judging import JudgedPolicy
from orchestration.plans import Plan, settings_digest
from tests.orchestration.test_evaluation import samples


def sampled(*episodes: tuple[tuple[Sample, ...], ...]) -> HeldOut:
    """One argument an episode: its lists."""
    return HeldOut(tuple(Judged(i, "q", lists) for i, lists in enumerate(episodes)), 1, "boom", 40, 7)


def plain() -> Judgement:
    """Three episodes of 4 samples: 3, 1 and 0 of them solved."""
    return judge(
        sampled((samples("up", "up", "left", ""),), (samples("up", "", "", ""),), (samples("", "", "", ""),)),
        None,
        None,
    )


# --- the interval ----------------------------------------------------------------------------------------------------


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.array(np.random.default_rng(5).normal(2.0, 3.0, 400).tolist())
    figure = Bootstrap(400).mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert figure.mean == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_equal_values_leave_no_doubt_and_one_value_tells_nothing() -> None:
    figure = Bootstrap(5).mean(np.full(5, 0.25))
    assert (figure.mean, figure.low, figure.high) == (0.25, 0.25, 0.25)
    alone = Bootstrap(1).mean(np.array([0.25]))
    assert alone.mean == 0.25
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_the_same_figures_each_time() -> None:
    values = np.arange(10, dtype=np.float64)
    assert Bootstrap(10).mean(values) == Bootstrap(10).mean(values)


def test_missing_values_are_in_no_mean() -> None:
    both = np.array([[0.0, 0.0], [1.0, math.nan], [2.0, math.nan]])
    first, second = Bootstrap(3).means(both)
    assert (first.mean, first.low < 1.0 < first.high) == (1.0, True)
    assert second.mean == 0.0
    assert math.isnan(second.low)  # of one value, which tells nothing
    assert math.isnan(second.high)


def test_two_values_have_an_interval_though_some_resamples_have_none_of_them() -> None:
    [figure] = Bootstrap(4).means(np.array([[1.0], [3.0], [math.nan], [math.nan]]))
    assert (figure.mean, figure.low, figure.high) == (2.0, 1.0, 3.0)


def test_a_ratio_of_one_episode_has_no_interval() -> None:
    figure = Bootstrap(2).ratio(np.array([1.0, math.nan]), np.array([0.5, 0.5]))
    assert figure is not None
    assert math.isnan(figure.low)


def test_a_ratio_is_of_means_not_a_mean_of_ratios() -> None:
    bootstrap = Bootstrap(2)
    figure = bootstrap.ratio(np.array([1.0, 0.5]), np.array([0.5, 0.0]))
    assert figure is not None
    assert figure.mean == pytest.approx(1.5 / 0.5)
    # Resamples: both of the first (2), one of each (3), both of the second (no ratio).
    assert (figure.low, figure.high) == (2.0, 3.0)
    assert bootstrap.ratio(np.ones(2), np.zeros(2)) is None


# --- the figures -----------------------------------------------------------------------------------------------------


def test_plain_figures_by_hand() -> None:
    figures = plain()
    assert figures.success.mean == pytest.approx((0.75 + 0.25) / 3)
    assert [figures.pass_at_k[k].mean for k in (1, 2, 3, 4)] == pytest.approx([1 / 3, 1.5 / 3, 1.75 / 3, 2 / 3])
    assert figures.distinct_at_k[4].mean == figures.distinct_solutions.mean == 1.0
    assert figures.coverage.mean == pytest.approx(2 / 3)
    assert (figures.first_pass_at_k, figures.first_distinct_at_k, figures.coverage_at_k) == ({}, {}, {})
    assert figures.pass_ratio is None
    assert figures.by_episode == {0: 0.75, 1: 0.25, 2: 0.0}
    assert (figures.episodes, figures.unjudged, figures.cause) == (3, 1, "boom")
    assert (figures.sampled_tokens, figures.env_steps) == (40, 7)


def test_plain_samples_find_targets_in_any_order() -> None:
    """Coverage@k of draws from one episode: distinct@k of 5 targets."""
    figures = judge(sampled((samples("up", "left", "", ""),), (samples("up", "up", "", ""),)), None, 5)
    assert figures.coverage_at_k[1].mean == pytest.approx(0.5 / 5)
    assert figures.coverage_at_k[4].mean == pytest.approx(1.5 / 5)
    assert figures.coverage.mean == 2 / 5
    assert math.isnan(figures.coverage.low)  # one question


def test_lists_find_targets_in_their_order() -> None:
    """Two lists of 2, and one: Coverage@1 = (1/2 + 0) / 2 of 5, Coverage@2 = (3/2 + 1) / 2 of 5."""
    lists = (samples("up", "left"), samples("", "up"))
    figures = judge(sampled(lists, (samples("", "down"),)), 2, 5)
    assert figures.coverage_at_k[1].mean == pytest.approx(0.25 / 5)
    assert figures.coverage_at_k[2].mean == pytest.approx(1.25 / 5)
    assert figures.first_pass_at_k[2].mean == 1.0
    assert [len(curve) for curve in (figures.first_pass_at_k, figures.pass_at_k)] == [2, 4]
    assert figures.pass_at_k[4].mean == 1.0  # of the episode that has four samples


def test_the_pass_ratio_is_there_with_sixteen_samples() -> None:
    figures = judge(sampled((samples(*["up"] * 8, *[""] * 8),), (samples("up", *[""] * 15),)), None, None)
    assert figures.pass_ratio is not None
    assert figures.pass_ratio.mean == pytest.approx(1.0 / ((8 + 1) / 32))


def test_the_gain_is_paired() -> None:
    better = judge(
        sampled((samples("up", "up", "left", "up"),), (samples("up", "up", "", ""),), (samples("up", "", "", ""),)),
        None,
        None,
    )
    figure = gain(plain(), better)
    assert figure == Figure(0.25, 0.25, 0.25)


def test_without_a_common_episode_there_is_no_gain() -> None:
    apart = judge(HeldOut((Judged(9, "", (samples("up"),)),), 0, "", 0, 0), None, None)
    assert gain(plain(), apart) is None
    judged = [JudgedPolicy("base", "id:base", 1.5, plain()), JudgedPolicy("ours", "id:ours", 2.0, apart)]
    assert document(RunConfig(), "", "plain", Plan(4), judged)["policies"][1]["success_gain"] is None
    show(Console(file=(out := StringIO()), width=120), RunConfig(), "plain", Plan(4), judged)
    assert "gain of success" not in out.getvalue()


# --- output ----------------------------------------------------------------------------------------------------------


def test_the_file_holds_every_figure(tmp_path: Path) -> None:
    judged = [JudgedPolicy("base", "id:base", 1.5, plain()), JudgedPolicy("[ours]", "id:ours", 2.0, plain())]
    path = tmp_path / "figures.json"
    write(path, document(RunConfig(), "python -m orchestration.evaluate", "plain", Plan(4), judged))
    read = json.loads(path.read_text())
    assert (read["format"], read["mode"], read["samples"], read["lists"]) == (1, "plain", 4, 1)
    assert read["config_digest"] == settings_digest(RunConfig())
    base, ours = read["policies"]
    assert list(base["pass_at_k"]) == ["1", "2", "3", "4"]
    assert set(base["success"]) == {"mean", "low", "high"}
    assert (base["success_gain"], ours["success_gain"]["mean"]) == (None, 0.0)
    assert base["by_episode"] == {"0": 0.75, "1": 0.25, "2": 0.0}
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


def test_no_number_is_null() -> None:
    only = judge(sampled((samples("up"),)), None, 3)
    [policy] = document(RunConfig(), "", "plain", Plan(1), [JudgedPolicy("a", "b", 1.0, only)])["policies"]
    assert policy["coverage"] == {"mean": pytest.approx(1 / 3), "low": None, "high": None}


def test_the_table_has_a_column_a_policy() -> None:
    out = StringIO()
    judged = [JudgedPolicy("base", "id:base", 1.5, plain()), JudgedPolicy("[ours]", "id:ours", 2.0, plain())]
    show(Console(file=out, width=120), RunConfig(), "plain", Plan(4), judged)
    shown = out.getvalue()
    for text in ("base", "[ours]", "4 samples", "gain of success", "0.333 [0.000, 0.750]", "pass@4"):
        assert text in shown
    assert "warning: base: 1 episodes could not be judged: boom" in shown
