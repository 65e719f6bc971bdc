"""metrics.jsonl and summary.json: what is written, what a crash leaves, what is read back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.metrics import MetricsLog, Summary, metric_problem, read_metrics, write_summary
from orchestration.metrics_table import UpdateMetrics


def metrics(update: int = 1, **changes: Any) -> UpdateMetrics:
    """The line of an update whose figures follow from its number."""
    line = UpdateMetrics(
        update=update,
        time_s=2.0 * update,
        reward_mean=0.01 * update,
        success=0.02 * update,
        loss=-0.001,
        entropy=0.7,
        grad_norm=0.3,
        clip_share=0.01,
        importance_mean=1.0,
        logprob_abs_diff_mean=1e-6,
        logprob_abs_diff_max=1e-5,
        kl=None,
        left_out_share=0.0,
        skipped_steps=0,
        padding_share=0.03,
        shared_share=0.4,
        groups=16,
        trajectories=128,
        tokens_trained=2000,
        generated_tokens=5000 * update,
        branch_tokens=500 * update,
        env_steps=300 * update,
        rollout_tokens_per_s=2500.0,
        rollout_trajectories_per_s=60.0,
        learner_tokens_per_s=9000.0,
        learner_trajectories_per_s=250.0,
        cache_hit_share=0.6,
        policy_lag_mean=0.5,
        policy_lag_max=1,
        groups_lag_0=8,
        groups_lag_1=8,
        groups_lag_2_3=0,
        groups_lag_4_up=0,
        queue_groups=3,
        queue_bytes=3 * 2**20,
        filtered=2 * update,
        stale=update,
        failed=0,
        ledger_missing=0,
        actors_up=2,
        failed_episodes=0,
        replaced_env_workers=0,
        duplicate_sketches=4,
        unparsable_sketches=1,
        distinct_sketches_share=0.9,
        distinct_answers_mean=2.5,
        distinct_solutions_mean=1.5,
        duplicate_answers=3,
        coverage=0.5,
        zero_advantage_share=0.2,
        pivots=8,
        pivots_recovered_share=0.25,
        pivot_gain_mean=0.1,
        pivot_depth_mean=0.4,
        recovered_depth_0_25=0.5,
        recovered_depth_25_50=0.25,
        recovered_depth_50_75=None,
        recovered_depth_75_100=0.0,
        weight_sync_s=0.05,
        sync_pause_s=0.01,
        sync_gather_s=0.01,
        sync_transfer_s=0.02,
        sync_load_s=0.02,
        learner_idle_share=0.4,
        learner_step_share=0.5,
        learner_sync_share=0.05,
        actor_idle_share=0.1,
        actor_paused_share=0.05,
        lr=5e-4,
    )
    return replace(line, **changes)


SUMMARY = Summary(
    env="frozen_lake",
    sampler="sesa",
    seed=0,
    updates=100,
    success_before=0.3,
    success_after=0.6,
    success_gain_ci95=(0.25, 0.35),
    pass_at_k_before={"8": 0.7},
    pass_at_k_after={"8": 0.9},
    distinct_solutions_before=1.5,
    distinct_solutions_after=2.5,
    answer_entropy_before=0.6,
    answer_entropy_after=0.9,
    coverage_before=0.7,
    coverage_after=0.9,
    tickets={"issued": 10, "trained": 6, "filtered": 1, "stale": 1, "failed": 1, "cancelled": 1},
    ledger_balanced=True,
    generated_tokens=500_000,
    env_steps=30_000,
    rollout_tokens_per_s=2500.0,
    learner_tokens_per_s=9000.0,
    weight_sync_s_mean=0.05,
    learner_idle_fraction=0.4,
    actor_idle_fraction=0.1,
    logprob_abs_diff_mean=1e-6,
    logprob_abs_diff_max=None,
    policy_lag_max=1,
    zero_advantage_share_mean=0.3,
    duplicate_sketches_share=None,
    wall_s=200.0,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_an_update_as_soon_as_it_is_appended(path: Path) -> None:
    with MetricsLog(path) as log:
        log.append(metrics(1))
        log.append(metrics(2))
        assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(metrics(1)), asdict(metrics(2))]
    assert read_metrics(path) == [asdict(metrics(1)), asdict(metrics(2))]


def test_what_json_cannot_hold_becomes_null(path: Path) -> None:
    with MetricsLog(path) as log:
        log.append(metrics(loss=math.nan, grad_norm=math.inf, entropy=-math.inf, distinct_sketches_share=None))
    (line,) = read_metrics(path)
    assert [line[key] for key in ("loss", "grad_norm", "entropy", "distinct_sketches_share")] == [None] * 4


def test_a_resumed_run_appends_and_its_lines_count(path: Path) -> None:
    for first, loss in ((1, 0.0), (3, 1.0)):
        with MetricsLog(path) as log:
            for update in range(first, first + 4):
                log.append(metrics(update, loss=loss))
    assert [(line["update"], line["loss"]) for line in read_metrics(path)] == [
        *((1, 0.0), (2, 0.0)),
        *((update, 1.0) for update in range(3, 7)),
    ]


def test_a_line_that_a_crash_cut_short_is_not_read_and_then_cut_off(path: Path) -> None:
    with MetricsLog(path) as log:
        log.append(metrics(1))
    whole = path.read_text()
    path.write_text(whole + whole[:50])
    assert len(read_metrics(path)) == 1
    with MetricsLog(path) as log:
        log.append(metrics(2))
    assert [line["update"] for line in read_metrics(path)] == [1, 2]
    path.write_text(whole[:50])
    MetricsLog(path).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["nonsense", "[1]", "3", "{}", '{"update": "x"}'])
def test_a_foreign_line_is_named(path: Path, line: str) -> None:
    path.write_text(f'{{"update": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is no line of metrics"):
        read_metrics(path)


def test_the_summary_holds_the_keys_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SUMMARY)
    read = json.loads(path.read_text())
    keys = """env sampler seed updates success_before success_after success_gain_ci95 pass_at_k_before pass_at_k_after
        distinct_solutions_before distinct_solutions_after answer_entropy_before answer_entropy_after
        coverage_before coverage_after tickets ledger_balanced generated_tokens env_steps rollout_tokens_per_s
        learner_tokens_per_s
        weight_sync_s_mean learner_idle_fraction actor_idle_fraction logprob_abs_diff_mean logprob_abs_diff_max
        policy_lag_max zero_advantage_share_mean duplicate_sketches_share wall_s"""
    assert list(read) == keys.split()
    assert read["success_gain_ci95"] == [0.25, 0.35]
    assert read["pass_at_k_after"] == {"8": 0.9}
    assert read["logprob_abs_diff_max"] is None


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SUMMARY)
    with pytest.raises(TypeError):
        write_summary(path, replace(SUMMARY, tickets={"issued": object()}))  # type: ignore[dict-item]
    assert json.loads(path.read_text())["updates"] == 100
    write_summary(path, replace(SUMMARY, wall_s=math.nan))
    assert json.loads(path.read_text())["wall_s"] is None


def test_the_position_is_where_the_next_line_begins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        assert log.position() == 0
        log.append(metrics(1))
        position = log.position()
        assert path.read_bytes()[:position].endswith(b"}\n")
        log.append(metrics(2))
    with MetricsLog(path) as log:
        assert log.position() == path.stat().st_size > position
    assert json.loads(path.read_bytes()[position:])["update"] == 2


def test_a_metrics_name_is_checked() -> None:
    assert metric_problem("success") is None
    assert metric_problem("sucess") == "metrics.jsonl has no 'sucess'; did you mean 'success'?"
    assert str(metric_problem("zzz")).startswith("metrics.jsonl has no 'zzz': update, time_s, ")
