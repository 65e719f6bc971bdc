"""A run's evaluations in evaluations.jsonl: before its first update, every few updates, behind its last."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.evaluation import Evaluation, success_interval
from orchestration.held_out import Lanes, evaluate
from orchestration.metrics import read_metrics
from orchestration.metrics_table import HeldOutMetrics
from orchestration.recorder import Recorder
from orchestration.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluates under the plain prompt and keeps the log."""

    config: RunConfig
    folder: RunFolder
    actors: Lanes
    recorder: Recorder
    say: Callable[[str], None]

    async def while_training(self, update: int) -> None:
        """Evaluate the policy the actors hold after `update`, where eval.every asks for it and another update follows.

        Raises EvaluationError.
        """
        every = self.config.eval.every
        if every and update % every == 0 and not self.recorder.is_over(update):
            evaluation = await self.recorder.beside_training(evaluate(self.config, self.actors))
            self.write(update, evaluation)
            self.say(f"success after {update} updates: {evaluation.success:.3f}, coverage {evaluation.coverage:.3f}")

    def write(self, update: int, evaluation: Evaluation) -> None:
        """Put down a line, on disk when this returns; one of the same update, of a run that died then, is replaced."""
        totals = self.recorder.totals
        line = HeldOutMetrics(
            update,
            totals.sampled_tokens,
            totals.env_steps,
            evaluation.success,
            *success_interval(evaluation.by_episode),
            {str(k): value for k, value in evaluation.pass_at_k.items()},
            evaluation.coverage,
            evaluation.distinct_solutions,
            evaluation.answer_entropy,
        )
        _rewrite(self.folder, [*_lines(self.folder, update - 1), asdict(line)])
        self.recorder.held_out(line)
        if evaluation.unjudged:
            self.say(f"warning: {evaluation.unjudged} held-out episodes could not be judged: {evaluation.cause}")


def roll_back(folder: RunFolder, update: int) -> None:
    """Drop the lines of later updates than `update`. Raises ValueError naming a line that is none."""
    if folder.evaluations.exists():
        _rewrite(folder, _lines(folder, update))


def _lines(folder: RunFolder, last: int) -> list[dict[str, Any]]:
    there = read_metrics(folder.evaluations) if folder.evaluations.exists() else []
    return [line for line in there if int(line["update"]) <= last]


def _rewrite(folder: RunFolder, lines: Sequence[dict[str, Any]]) -> None:
    # A few lines a run: writing them anew leaves the old file or the new one, whatever happens.
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    replace_durably(folder.evaluations, text.encode())
