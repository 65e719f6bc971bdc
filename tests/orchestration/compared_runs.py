"""Comparisons whose runs take no time: a launcher that leaves the folder a run would leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.comparison import load_comparison
from configs.load import load_config, to_yaml
from configs.schema import RunConfig
from orchestration import comparison_plan
from orchestration.comparison_plan import Judgement, make_plan
from orchestration.comparison_run import Task, command
from orchestration.evaluation import HeldOut, Judged, Sample
from orchestration.judgement import judge
from orchestration.judgement_output import document
from orchestration.judging import JudgedPolicy
from orchestration.plans import Plan
from orchestration.policy import SOURCES as ROOT

HELD_OUT = HeldOut((Judged(0, "q", ((Sample(True, "up"),),)),), 0, "", 10, 1)
COMPARISON = """
base: BASE
tokens: 1000
seeds: [0, 1]
overrides: [optim.lr=2.0e-4]
methods:
  one: []
  two: ["sampler={name: sesa, sketches: 4}"]
"""


def comparison_file(folder: Path, text: str = COMPARISON) -> Path:
    path = folder / "few.yaml"
    base = folder / "base.yaml"
    base.write_text("sampler: {name: parallel, group_size: 4}\n")
    path.write_text(text.replace("BASE", "base.yaml"), encoding="utf-8")
    return path


def planned(path: Path, root: Path) -> comparison_plan.Plan:
    return make_plan(load_comparison(path), path, root, root)


def leave_run(folder: Path, config: RunConfig, **summary: Any) -> None:
    """A finished run: success rises from 0.2 to `success_after` in a straight line over its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {
        "success_before": 0.2, "success_after": 0.5, "pass_at_k_before": {"1": 0.2, "8": 0.4},
        "pass_at_k_after": {"1": 0.5, "8": 0.7}, "distinct_solutions_before": 1.0, "distinct_solutions_after": 1.5,
        "updates": 2, "generated_tokens": 1100, "env_steps": 50, "wall_s": 9.5, "rollout_tokens_per_s": 320.0,
        "ledger_balanced": True,
    } | summary  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(config))
    write_lines(
        folder / "metrics.jsonl",
        [{"update": i, "generated_tokens": 550 * i, "entropy": 0.8 - 0.2 * i} for i in (1, 2)],
    )
    end = figures["success_after"]
    write_lines(
        folder / "evaluations.jsonl",
        [
            {"update": i, "generated_tokens": 550 * i, "success": 0.2 + (end - 0.2) * i / 2, "coverage": None}
            for i in (0, 1, 2)
        ],
    )
    (folder / "summary.json").write_text(json.dumps(figures))


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Ended:
    """A process that has ended before one looks."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status

    def stop(self, *, force: bool) -> None:
        raise AssertionError("nothing runs any more")


class FakeLauncher:
    """Leaves what a task would: a run's folder, or the figures of a judged policy.

    summary: what a run's summary says, by name of the task. broken: names of tasks that fail. began: in that order.
    """

    def __init__(self, summary: Callable[[str], dict[str, Any]] = lambda _: {}, broken: Sequence[str] = ()) -> None:
        self.summary, self.broken, self.began = summary, broken, list[Task]()

    def start(self, task: Task) -> Ended:
        self.began.append(task)
        if task.name in self.broken:
            task.log.write_text("first\n" * 20 + "\nerror: it broke\n")
            return Ended(3)
        if task.arguments[0] == "-m":
            self._judge(task)
        elif "--resume" in task.arguments:
            folder = Path(task.arguments[-1])
            leave_run(folder, load_config(folder / "config.yaml", ()), **self.summary(task.name))
        else:
            config = load_config(ROOT / task.arguments[2], task.arguments[3:])
            leave_run(ROOT / config.run.root / str(config.run.name), config, **self.summary(task.name))
        return Ended(0)

    def _judge(self, task: Task) -> None:
        at = task.arguments.index("--output") + 1
        config = load_config(ROOT / task.arguments[task.arguments.index("--config") + 1], task.arguments[at + 1 :])
        success = 0.3 if task.name.startswith("start") else 0.6
        (ROOT / task.arguments[at]).write_text(json.dumps(evaluation_file(task.arguments, config, success)))


def leave_judgement(judgement: Judgement, success: float, **other: Any) -> None:
    judgement.output.parent.mkdir(parents=True, exist_ok=True)
    judgement.output.write_text(json.dumps(evaluation_file(judgement.arguments, judgement.config, success) | other))


def evaluation_file(arguments: Sequence[str], config: RunConfig, success: float) -> dict[str, Any]:
    """As far as a comparison reads it."""
    plan, by = Plan(1), JudgedPolicy("a/policy", "id:a", 1.0, judge(HELD_OUT, None, None))
    return document(config, command(arguments), "plain", plan, [by]) | judged(success)


def judged(success: float) -> dict[str, Any]:
    """Its policies."""
    means = {"success": success, "coverage": 0.9, "distinct_solutions": 1.5, "answer_entropy": 0.7}
    passes = {str(k): success + 0.1 * (k - 1) for k in (1, 2, 3)}
    figures = {name: _figure(value) for name, value in means.items()}
    by_k = {"pass_at_k": {k: _figure(value) for k, value in passes.items()}, "coverage_at_k": {}, "first_pass_at_k": {}}
    return {"policies": [{"name": "a/policy", **figures, "pass_ratio": None, **by_k}]}


def _figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}
