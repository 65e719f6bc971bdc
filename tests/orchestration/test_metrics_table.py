"""One table of metrics: everything a line holds has unit, meaning and healthy range, and docs/metrics.md says so."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics, metrics_table, scalars
from tests.orchestration.test_metrics import metrics

HELD_OUT = HeldOutMetrics(3, 900, 60, 0.5, 0.4, 0.6, {"1": 0.5, "16": 0.75}, 0.8, 1.5, 0.25)


@pytest.mark.parametrize("kind", [UpdateMetrics, HeldOutMetrics])
def test_every_metric_is_documented(kind: type[UpdateMetrics] | type[HeldOutMetrics]) -> None:
    table = metrics_table(kind)
    assert [metric.name for metric in table] == [field.name for field in fields(kind)]
    for metric in table:
        assert metric.unit, metric.name
        assert metric.healthy, metric.name
        assert metric.meaning.endswith("."), metric.name
        assert "\n" not in metric.meaning, metric.name


def test_what_may_be_missing_is_known() -> None:
    optional = {metric.name for metric in metrics_table(UpdateMetrics) if metric.optional}
    assert {"kl", "coverage", "cache_hit_share", "pivot_gain_mean"} <= optional
    assert not optional & {"update", "loss", "success", "groups"}


def test_scalars_leave_out_what_is_no_number() -> None:
    values = scalars(metrics(loss=math.nan, grad_norm=math.inf))
    assert not {"loss", "grad_norm", "kl"} & set(values)
    assert values["queue_bytes"] == 3 * 2**20
    assert set(values) == {f.name for f in fields(UpdateMetrics)} - {"loss", "grad_norm", "kl", "recovered_depth_50_75"}


def test_scalars_of_an_evaluation_name_each_k() -> None:
    assert scalars(HELD_OUT) == {
        "update": 3.0, "generated_tokens": 900.0, "env_steps": 60.0, "success": 0.5,
        "success_low": 0.4, "success_high": 0.6, "pass_at_1": 0.5,
        "pass_at_16": 0.75, "coverage": 0.8, "distinct_solutions": 1.5, "answer_entropy": 0.25,
    }  # fmt: skip
