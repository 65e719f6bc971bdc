"""What the console says of figures that call for something: once, in time, and not of a run in good order."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestration.advice import OVER, RULES, Advisor
from orchestration.metrics_table import UpdateMetrics
from tests.orchestration.test_metrics import metrics

BAD: dict[str, Any] = {
    "entropy": (0.7, 0.01), "zero_advantage_share": (0.2, 1.0), "learner_idle_share": (0.4, 0.9),
    "actor_idle_share": (0.1, 0.9), "logprob_abs_diff_mean": (1e-6, 0.2),
}  # fmt: skip


def test_who_takes_turns_is_not_told_that_one_of_both_waits() -> None:
    for metric in ("learner_idle_share", "actor_idle_share"):
        assert said(Advisor(takes_turns=True), series(metric, 0.9, OVER)) == []
    assert len(said(Advisor(takes_turns=True), series("zero_advantage_share", 1.0, OVER))) == 1


def said(advisor: Advisor, lines: list[UpdateMetrics]) -> list[str]:
    return [text for line in lines for text in advisor.look(line)]


def series(metric: str, value: float | None, count: int) -> list[UpdateMetrics]:
    return [metrics(i, **{metric: value}) for i in range(1, count + 1)]


def test_a_run_in_good_order_hears_nothing() -> None:
    assert said(Advisor(), [metrics(i) for i in range(1, 60)]) == []


def test_every_rule_is_tried_here() -> None:
    assert {rule.metric for rule in RULES} == set(BAD)


@pytest.mark.parametrize("metric", BAD)
def test_it_is_said_once_and_again_after_it_was_over(metric: str) -> None:
    good, bad = BAD[metric]
    advisor = Advisor()
    assert said(advisor, series(metric, good, 2 * OVER)) == []
    (text,) = said(advisor, series(metric, bad, 3 * OVER))
    assert text.startswith("over the last 10 updates ")
    assert said(advisor, series(metric, good, 2 * OVER)) == []
    assert len(said(advisor, series(metric, bad, 2 * OVER))) == 1


def test_not_before_there_are_enough_updates() -> None:
    assert said(Advisor(), series("learner_idle_share", 0.9, OVER - 1)) == []
    assert len(said(Advisor(), series("learner_idle_share", 0.9, OVER))) == 1


def test_one_bad_update_is_not_enough() -> None:
    lines = [*series("learner_idle_share", 0.4, OVER), metrics(11, learner_idle_share=1.0)]
    assert said(Advisor(), lines) == []


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_has_no_value_is_not_judged(value: float | None) -> None:
    assert said(Advisor(), series("logprob_abs_diff_mean", value, 3 * OVER)) == []
    assert said(Advisor(), series("zero_advantage_share", value, 3 * OVER)) == []


def test_an_update_without_a_value_changes_nothing() -> None:
    """One of them in the middle: what was said is not said again, and the highest mean is remembered."""
    advisor, nothing = Advisor(), metrics(50, zero_advantage_share=math.nan, entropy=math.nan)
    lines = series("zero_advantage_share", 1.0, 2 * OVER)
    assert len(said(advisor, [*lines, nothing, *lines])) == 1
    advisor = Advisor()
    texts = said(advisor, [*series("entropy", 0.7, 2 * OVER), nothing, *series("entropy", 0.01, 2 * OVER)])
    assert [text for text in texts if "entropy" in text] == texts
    assert len(texts) == 1


def test_the_words_name_the_figure_and_what_to_do() -> None:
    (text,) = said(Advisor(), series("learner_idle_share", 0.9, OVER))
    assert text == (
        "over the last 10 updates the learner waits 90% of the time: python -m orchestration.scale RUN actors=N, or a "
        "higher queue.max_policy_lag"
    )
