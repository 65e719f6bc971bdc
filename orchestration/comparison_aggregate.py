"""A comparison as one plain document: every run, and each method's means over seeds with their intervals.

Only finished runs enter a mean; the document says which seeds of a method are missing, and why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.comparison import ComparisonConfig
from orchestration.comparison_known import Known
from orchestration.comparison_plan import Plan, PlannedRun, from_root
from orchestration.comparison_results import CURVES, RunResult
from orchestration.comparison_run import command, shown_command
from orchestration.comparison_statistics import Interval, band, interval, on_grid, paired, ratio, token_grid

_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")
HOW = (
    "mean over seeds and 95 % interval by Student's t; against_first: differences to the first method, paired by seed; "
    "gain_ratio: ratio of the mean gains over the seeds both have, 95 % interval by Fieller; "
    "curves: straight lines between a run's points, at the same token counts for all runs"
)


def document(
    comparison: ComparisonConfig,
    path: Path,
    plan: Plan,
    shown: Plan,
    results: Mapping[str, RunResult],
    start: Mapping[str, Mapping[str, float]],
    failed: Mapping[str, str],
    known: Known | None = None,
) -> dict[str, Any]:
    """Numbers, text, lists and objects alone.

    shown: the plan with folders as a reader has them, for commands. failed: name -> why, of this call's tasks.
    known: runs of an earlier document, for those that are not in `results`.
    """
    known = known or Known()
    digests = {name: digest for name, digest in known.digests.items() if name not in results}
    results = {**known.results, **results}
    grid = token_grid(comparison.tokens)
    by_method = {name: [run for run in plan.runs if run.method == name] for name in comparison.methods}
    finished = {name: [run for run in runs if run.name in results] for name, runs in by_method.items()}
    figures = {name: _by_seed(runs, results) for name, runs in by_method.items()}
    first = next(iter(comparison.methods))
    config = str(from_root(path)) if not from_root(path).is_absolute() else path.name
    return {
        "name": plan.name,
        "command": command(("-m", "orchestration.compare", "--config", config)),
        "how": HOW,
        "budget_tokens": comparison.tokens,
        "seeds": list(comparison.seeds),
        "first": first,
        "grid_tokens": grid,
        "start": {mode: dict(values) for mode, values in start.items()},
        "methods": {
            name: {
                "after": method.after,
                "overrides": list(method.overrides),
                "finished_seeds": [run.seed for run in finished[name]],
                "missing": _missing(by_method[name], results, failed),
                "short_of_tokens": _short(by_method[name], results, comparison.tokens),
                "figures": {figure: asdict(interval(list(v.values()))) for figure, v in figures[name].items()},
                "against_first": _against(figures[name], figures[first]) if name != first else {},
                "gain_ratio": _gain_ratio(figures[name], figures[first]),
                "curves": _known_curves(finished[name], known, digests)
                or _curves([results[run.name] for run in finished[name]], grid),
            }
            for name, method in comparison.methods.items()
        },
        "runs": [
            _run(run, results.get(run.name), failed.get(run.name), digests.get(run.name, run.digest))
            for run in shown.runs
        ],
        "judged_by": [shown_command(judgement.arguments) for judgement in shown.judgements],
    }


def as_text(compared: Mapping[str, Any]) -> str:
    """The document as JSON, what holds nothing but values on one line. Raises ValueError where a number is none."""
    text = json.dumps(compared, indent=1, allow_nan=False)
    # A line break is never inside a string, so what looks like brackets there does no harm.
    return _INNERMOST.sub(lambda match: re.sub(r"\n *", " ", match[0]), text) + "\n"


def _by_seed(runs: Iterable[PlannedRun], results: Mapping[str, RunResult]) -> dict[str, dict[int, float]]:
    """Figure -> seed -> value."""
    table: dict[str, dict[int, float]] = {}
    for run in runs:
        for figure, value in results[run.name].figures.items() if run.name in results else ():
            table.setdefault(figure, {})[run.seed] = value
    return table


def _against(ours: Mapping[str, dict[int, float]], first: Mapping[str, dict[int, float]]) -> dict[str, Any]:
    differences = {figure: paired(values, first.get(figure, {})) for figure, values in ours.items()}
    return {figure: asdict(difference) for figure, difference in differences.items() if difference is not None}


def _gain_ratio(ours: Mapping[str, dict[int, float]], first: Mapping[str, dict[int, float]]) -> dict[str, Any] | None:
    """Mean gain of success over that of the first method; None where that one gained nothing."""
    gains = ratio(ours.get("success_gain", {}), first.get("success_gain", {}))
    return None if gains is None else asdict(gains)


def _missing(runs: Iterable[PlannedRun], results: Mapping[str, RunResult], failed: Mapping[str, str]) -> dict[str, str]:
    """Seed -> why it is in no mean."""
    return {str(run.seed): failed.get(run.name, "not finished") for run in runs if run.name not in results}


def _short(runs: Iterable[PlannedRun], results: Mapping[str, RunResult], tokens: int) -> dict[str, float]:
    """Seed -> tokens, of runs that something else than the budget ended: they are not at equal tokens."""
    spent = {str(run.seed): results[run.name].figures.get("generated_tokens") for run in runs if run.name in results}
    return {seed: value for seed, value in spent.items() if value is not None and value < tokens}


def _known_curves(runs: Sequence[PlannedRun], known: Known, taken: Collection[str]) -> Any | None:
    """An earlier document's, where it has just these runs of a method. taken: names of the runs taken from it."""
    if not runs or any(run.name not in taken for run in runs):
        return None
    return known.curves_of(runs[0].method, [run.seed for run in runs])


def _curves(results: Sequence[RunResult], grid: Sequence[float]) -> dict[str, Any]:
    """Curve -> mean, low and high at the grid's tokens; only curves that all runs of the method have."""
    curves = {}
    for name in CURVES:
        if results and all(name in result.curves for result in results):
            curves[name] = _columns(band([on_grid(result.curves[name], grid) for result in results]))
    return curves


def _columns(points: Sequence[Interval | None]) -> dict[str, list[float | None]]:
    return {part: [None if p is None else getattr(p, part) for p in points] for part in ("mean", "low", "high")}


def _run(run: PlannedRun, result: RunResult | None, why: str | None, digest: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": run.name,
        "method": run.method,
        "seed": run.seed,
        "status": "finished" if result is not None else why or "not finished",
        "command": shown_command(run.arguments),
        "config_digest": digest,
    }
    if result is None:
        return line
    points = {name: [list(point) for point in curve] for name, curve in result.curves.items() if name != "entropy"}
    return line | {"summary": dict(result.summary), "figures": dict(result.figures), "evaluations": points}
