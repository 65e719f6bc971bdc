"""What the runs of a comparison left in their folders: figures by name, and curves against generated tokens."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from configs.files import read_file
from orchestration.comparison_plan import Judgement, Plan, PlannedRun
from orchestration.comparison_statistics import Curve
from orchestration.evaluation import doublings
from orchestration.metrics import read_metrics
from orchestration.plans import settings_digest

# Of the policy before and after training; coverage and answer entropy are not in every summary.
CHANGES = ("success", "coverage", "distinct_solutions", "answer_entropy")
COSTS = ("updates", "generated_tokens", "env_steps", "wall_s", "rollout_tokens_per_s")
JUDGED = ("success", "coverage", "distinct_solutions", "answer_entropy", "pass_ratio")
_MOST_BYTES = 2**28
JUDGED_BY_K = ("pass_at_k", "first_pass_at_k", "coverage_at_k")
# Curve -> where its values are: in the evaluations while training, or in the line of each update.
CURVES = {
    "success": "evaluations.jsonl", "coverage": "evaluations.jsonl", "distinct_solutions": "evaluations.jsonl",
    "answer_entropy": "evaluations.jsonl", "entropy": "metrics.jsonl",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that is finished. summary: summary.json as it is. figures: name -> value, only those that are numbers;
    those of the final judge as MODE.NAME. curves: name -> points, only where there are some.
    """

    summary: Mapping[str, Any]
    figures: Mapping[str, float]
    curves: Mapping[str, Curve]


class ResultError(ValueError):
    """A file of a finished run cannot be read; names it."""


def read_results(plan: Plan) -> tuple[dict[str, RunResult], dict[str, dict[str, float]]]:
    """Name -> result of every finished run, and mode -> figures of the base's own policy. Raises ResultError."""
    results = {run.name: _read(run, plan.judgements) for run in plan.runs if (run.folder / "summary.json").exists()}
    start: dict[str, dict[str, float]] = {}
    for judgement in plan.judgements:
        if judgement.after is None and (judged := judged_by(judgement)) is not None:
            start[judgement.mode] = judged
    return results, start


def judged_by(judgement: Judgement) -> dict[str, float] | None:
    """`judged_figures` of its file, wherever files lay when it was made.

    None where there is no file or a damaged one, or it is of another command or of other settings: to be done.
    """
    try:
        made = read_json(judgement.output)
        return judged_figures(made) if _is_planned(made, judgement) else None
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _is_planned(made: Mapping[str, Any], judgement: Judgement) -> bool:
    settings, digest = judgement.config, settings_digest(judgement.config)
    return (
        _without_places(shlex.split(made["command"])[1:]) == _without_places(judgement.arguments)
        and made["env"] == settings.env.model_dump(mode="json")
        and made["temperature"] == settings.rollout.temperature
        and made.get("config_digest", digest) == digest  # older files have none
    )


def _without_places(arguments: Sequence[str]) -> list[str]:
    places = {i + 1 for i, argument in enumerate(arguments) if argument in ("--config", "--policy", "--output")}
    return [argument for i, argument in enumerate(arguments) if i not in places]


def judged_figures(document: Mapping[str, Any]) -> dict[str, float]:
    """Means over episodes of the one policy in an evaluation's file: JUDGED, and pass_at_1, pass_at_2, pass_at_4 ..."""
    [policy] = document["policies"]
    figures = {name: policy[name] for name in JUDGED}
    for name in filter(policy.get, JUDGED_BY_K):
        figures |= {f"{name.removesuffix('k')}{k}": policy[name][str(k)] for k in doublings(len(policy[name]))}
    return dict(_numbers({name: figure["mean"] for name, figure in figures.items() if figure is not None}))


def _read(run: PlannedRun, judgements: Sequence[Judgement]) -> RunResult:
    summary, lines = read_json(run.folder / "summary.json"), _lines(run.folder / "metrics.jsonl")
    sources = {"metrics.jsonl": lines, "evaluations.jsonl": _lines(run.folder / "evaluations.jsonl")}
    curves = {name: _curve(sources[source], name) for name, source in CURVES.items()}
    figures = dict(_figures(summary, curves))
    for judgement in judgements:
        if judgement.after == run.name and (judged := judged_by(judgement)) is not None:
            figures |= {f"{judgement.mode}.{name}": value for name, value in judged.items()}
    return RunResult(summary, figures, {name: curve for name, curve in curves.items() if curve})


def _figures(summary: Mapping[str, Any], curves: Mapping[str, Curve]) -> Iterator[tuple[str, float]]:
    for name in CHANGES:
        pair = dict(_numbers({when: summary.get(f"{name}_{when}") for when in ("before", "after")}))
        yield from ((f"{name}_{when}", value) for when, value in pair.items())
        if len(pair) == 2:
            yield f"{name}_gain", pair["after"] - pair["before"]
    for when in ("before", "after"):
        values = summary.get(f"pass_at_k_{when}")
        if isinstance(values, dict):
            yield from _numbers({f"pass_at_{k}_{when}": value for k, value in values.items()})
    if entropies := [value for _, value in curves["entropy"]]:
        # One update's entropy is noisy.
        yield "entropy_last_tenth", fmean(entropies[-math.ceil(len(entropies) / 10) :])
    yield from _numbers({name: summary.get(name) for name in COSTS})


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """(generated tokens, value) of the lines that have both."""
    pairs = [dict(_numbers({key: line.get(key) for key in ("generated_tokens", name)})) for line in lines]
    return [(pair["generated_tokens"], pair[name]) for pair in pairs if len(pair) == 2]


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        # Whole numbers that no float holds are none of ours.
        if isinstance(value, int | float) and -1e300 < value < 1e300:
            yield name, float(value)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ResultError."""
    try:
        document = json.loads(read_file(path, _MOST_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ResultError(f"{path}: an object is expected")
    return document


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log of updates; none where there is no log."""
    try:
        return read_metrics(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
