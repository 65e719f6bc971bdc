"""Judgements as a JSON file and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.table import Table

from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.evaluation import doublings
from orchestration.judgement import RATIO_K, Figure, Judgement, gain
from orchestration.judging import JudgedPolicy
from orchestration.plans import Mode, Plan, settings_digest

FORMAT = 1


def document(config: RunConfig, command: str, mode: Mode, plan: Plan, judged: Sequence[JudgedPolicy]) -> dict[str, Any]:
    """What the JSON file holds: docs/evaluation.md. Figures are {"mean", "low", "high"}, curves by k as text."""
    return {
        "format": FORMAT,
        "command": command,
        "env": config.env.model_dump(mode="json"),
        "mode": mode,
        "sampler": None if plan.settings is None else plan.settings.model_dump(mode="json"),
        "episodes": config.eval.episodes,
        "samples": plan.samples,
        "lists": plan.lists,
        "list_length": plan.length,
        "seed": config.run.seed,
        "temperature": config.rollout.temperature,
        "config_digest": settings_digest(config),
        "policies": [
            {
                "name": one.policy,
                "digest": one.digest,
                "seconds": one.seconds,
                **_plain(asdict(one.judgement)),
                "success_gain": _gain(judged[0], one),
            }
            for one in judged
        ],
    }


def write(path: Path, contents: Mapping[str, Any]) -> None:
    """Whole or not at all. Raises OSError."""
    replace_durably(path, (json.dumps(contents, indent=1, allow_nan=False) + "\n").encode())


def show(terminal: Terminal, config: RunConfig, mode: Mode, plan: Plan, judged: Sequence[JudgedPolicy]) -> None:
    """One column a policy: means with their 95 % intervals."""
    title = f"{config.env.name}, {mode}, {config.eval.episodes} held-out episodes, {plan}"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    columns = [_cells(one.judgement, judged[0].judgement) for one in judged]
    for one in judged:
        table.add_column(one.policy, justify="right", overflow="fold")
    for name in dict.fromkeys(name for column in reversed(columns) for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns))
    terminal.print(table, markup=False)
    for one in judged:
        if one.judgement.unjudged:
            terminal.print(
                f"warning: {one.policy}: {one.judgement.unjudged} episodes could not be judged: {one.judgement.cause}",
                markup=False,
            )


def _cells(judgement: Judgement, first: Judgement) -> dict[str, str]:
    """Row -> cell of one policy; curves at k = 1, 2, 4, ..."""
    cells = {"success": _cell(judgement.success)}
    if judgement is not first and (gained := gain(first, judgement)) is not None:
        cells["gain of success"] = _cell(gained)
    for name, curve in (
        ("pass@{}", judgement.pass_at_k),
        ("pass, first {} of list", judgement.first_pass_at_k),
        ("coverage@{}", judgement.coverage_at_k),
    ):
        cells |= {name.format(k): _cell(curve[k]) for k in doublings(len(curve))} if curve else {}
    if judgement.pass_ratio is not None:
        cells[f"pass@{RATIO_K} / pass@1"] = _cell(judgement.pass_ratio)
    return cells | {
        "different solutions": _cell(judgement.distinct_solutions),
        "coverage": _cell(judgement.coverage),
        "answer entropy, nats": _cell(judgement.answer_entropy),
        "tokens sampled": f"{judgement.sampled_tokens:,}",
        "environment steps": f"{judgement.env_steps:,}",
    }


def _gain(first: JudgedPolicy, other: JudgedPolicy) -> Any:
    """None of the first one itself, and where no episode was judged for both."""
    gained = gain(first.judgement, other.judgement) if other is not first else None
    return None if gained is None else _plain(asdict(gained))


def _cell(figure: Figure) -> str:
    if math.isnan(figure.low):
        return f"{figure.mean:.3f}"
    return f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _plain(value: Any) -> Any:
    """The value as JSON holds it: keys are text, a number that is none is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
