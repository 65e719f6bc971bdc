"""The Grafana dashboard of a run, made from the table of metrics: configs/monitoring/dashboard.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.metrics_table import EXPORTED, Metric, gauges

UID, TITLE = "sesa-on-ray", "SESA on Ray"
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
# Ours -> Grafana's, for its axes and tooltips.
_UNITS = {"s": "s", "bytes": "bytes", "share": "percentunit"}
_OF_RUN = '{run=~"$run"}'


@dataclass(frozen=True, slots=True)
class Panel:
    """names: of metrics, those of an evaluation with `held_out_` before them. stacked: their sum means something."""

    title: str
    names: tuple[str, ...]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


ROWS = (
    Row(
        "Is it learning?",
        (
            Panel("Held-out success", ("held_out_success", "held_out_success_low", "held_out_success_high")),
            Panel("pass@k on held-out episodes", ("held_out_pass_at_k",)),
            Panel("Coverage on held-out episodes", ("held_out_coverage",)),
            Panel("Answers to a held-out episode", ("held_out_distinct_solutions", "held_out_answer_entropy")),
            Panel("Success while training", ("success",)),
            Panel("Reward", ("reward_mean",)),
            Panel("Updates", ("update", "held_out_update")),
        ),
    ),
    Row(
        "Does it explore?",
        (
            Panel("Entropy", ("entropy",)),
            Panel("Groups without advantage", ("zero_advantage_share",)),
            Panel("Coverage of the right answers", ("coverage",)),
            Panel("Different answers of a group", ("distinct_answers_mean", "distinct_solutions_mean")),
            Panel("Different sketches", ("distinct_sketches_share",)),
            Panel("Repeated and unreadable", ("duplicate_sketches", "unparsable_sketches", "duplicate_answers")),
            Panel("Pivots", ("pivots",)),
            Panel("Recovered pivots, their depth", ("pivots_recovered_share", "pivot_depth_mean")),
            Panel("Gain of a pivot", ("pivot_gain_mean",)),
            Panel(
                "Recovered by quarter of depth",
                ("recovered_depth_0_25", "recovered_depth_25_50", "recovered_depth_50_75", "recovered_depth_75_100"),
            ),
        ),
    ),
    Row(
        "Does it flow?",
        (
            Panel("Tokens in a second", ("rollout_tokens_per_s", "learner_tokens_per_s")),
            Panel("Trajectories in a second", ("rollout_trajectories_per_s", "learner_trajectories_per_s")),
            Panel("The learner's time", ("learner_step_share", "learner_sync_share", "learner_idle_share"), True),
            Panel("The actors' time", ("actor_idle_share", "actor_paused_share"), True),
            Panel("Queue", ("queue_groups",)),
            Panel("Queue, bytes", ("queue_bytes",)),
            Panel("Cache hits, padding, shared beginnings", ("cache_hit_share", "padding_share", "shared_share")),
            Panel("Lag of a batch's groups", ("policy_lag_mean", "policy_lag_max")),
            Panel(
                "Groups of a batch by lag", ("groups_lag_0", "groups_lag_1", "groups_lag_2_3", "groups_lag_4_up"), True
            ),
            Panel(
                "Weight broadcast", ("weight_sync_s", "sync_pause_s", "sync_gather_s", "sync_transfer_s", "sync_load_s")
            ),
        ),
    ),
    Row(
        "Is it sound?",
        (
            Panel("Tickets the ledger misses", ("ledger_missing",)),
            Panel("Dropped tickets, cumulative", ("filtered", "stale", "failed"), True),
            Panel("Rollout actors that sample", ("actors_up",)),
            Panel("Failed episodes, replaced environment workers", ("failed_episodes", "replaced_env_workers")),
            Panel("Log-probs, learner against engine", ("logprob_abs_diff_mean", "logprob_abs_diff_max")),
            Panel("Distance to the reference", ("kl",)),
            Panel("Clipped and left out", ("clip_share", "left_out_share")),
            Panel("Importance weight", ("importance_mean",)),
            Panel("Loss", ("loss",)),
            Panel("Gradient norm", ("grad_norm",)),
            Panel("Learning rate", ("lr",)),
            Panel("Skipped steps", ("skipped_steps",)),
        ),
    ),
    Row(
        "What was spent",
        (
            Panel("Tokens sampled, cumulative", ("generated_tokens", "branch_tokens", "held_out_generated_tokens")),
            Panel("Environment steps, cumulative", ("env_steps", "held_out_env_steps")),
            Panel("Time, cumulative", ("time_s",)),
            Panel("A batch", ("groups", "trajectories")),
            Panel("Tokens with a loss", ("tokens_trained",)),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    return {
        "uid": UID,
        "title": TITLE,
        "tags": ["ray", "sesa"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _runs()]},
        "panels": list(_panels()),
    }


def queried(panel: Panel) -> list[str]:
    """What it asks Prometheus for."""
    return [_query(name) for name in panel.names]


def _panels() -> Iterator[dict[str, Any]]:
    """Rows of three, each under its heading."""
    y, number, table = 0, 0, gauges()
    for row in ROWS:
        number += 1
        yield {
            "id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
        }  # fmt: skip
        y += 1
        for i, panel in enumerate(row.panels):
            number += 1
            x = (i * _WIDTH) % _COLUMNS
            yield _panel(
                panel, [table[name] for name in panel.names], number, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}
            )
            if x + _WIDTH == _COLUMNS or i + 1 == len(row.panels):
                y += _HEIGHT


def _panel(panel: Panel, about: Sequence[Metric], number: int, place: dict[str, int]) -> dict[str, Any]:
    """about: the metrics it shows."""
    units = {_UNITS.get(metric.unit, "short") for metric in about}
    words = [
        f"**{name}** [{m.unit}]: {m.meaning} Healthy: {m.healthy}." for name, m in zip(panel.names, about, strict=True)
    ]
    drawn = _drawn(units.pop() if len(units) == 1 else "short", panel.stacked)
    # Stacked, several runs would be added up: one panel each.
    apart = {"repeat": "run", "repeatDirection": "h", "maxPerRow": _COLUMNS // _WIDTH} if panel.stacked else {}
    return apart | {
        "id": number, "type": "timeseries", "title": panel.title, "description": "\n\n".join(words), "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "targets": [_target(name, i) for i, name in enumerate(panel.names)],
        "fieldConfig": {"defaults": drawn, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip


def _target(name: str, number: int) -> dict[str, Any]:
    legend = "{{__name__}}" if name.endswith("_k") else name
    return {"refId": chr(ord("A") + number), "expr": _query(name), "legendFormat": f"{{{{run}}}} {legend}"}


def _query(name: str) -> str:
    if name.endswith("_at_k"):  # a gauge for each k
        return f'{{__name__=~"{EXPORTED}{name.removesuffix("k")}.+", run=~"$run"}}'
    return EXPORTED + name + _OF_RUN


def _drawn(unit: str, stacked: bool) -> dict[str, Any]:
    custom = {
        "lineWidth": 1, "fillOpacity": 20 if stacked else 0, "spanNulls": True,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }  # fmt: skip
    return {"unit": unit, "custom": custom}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _runs() -> dict[str, Any]:
    """All runs that Prometheus knows in the time shown; the reader may choose some."""
    query = f"label_values({EXPORTED}update, run)"
    return {
        "name": "run", "label": "Run", "type": "query", "query": {"query": query, "refId": "run"},
        "datasource": {"type": "prometheus", "uid": "${datasource}"}, "refresh": 2, "multi": True, "includeAll": True,
        "allValue": ".+", "current": {"text": "All", "value": "$__all"}, "sort": 1,
    }  # fmt: skip
