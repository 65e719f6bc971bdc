"""Scripted play of Math: the record's own worked solution and its answer, or the answer to another question."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from envs.demonstrations import Script
from envs.math.env import Math

METHODS = ("Add the parts.", "Work backwards.", "Write an equation.", "Try small cases.")


class MathScript(Script[Math]):
    """A method fits any question: guided play names it before the solution."""

    def sketches(self, env: Math) -> list[str]:  # noqa: ARG002 - they are the same for all questions
        return list(METHODS)

    def answers(
        self, env: Math, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        record = env.state.record
        while True:
            answer = record.answer if careful else env.random_answer(rng)
            worked = (careful and record.solution) or f"It is {answer}."
            yield " ".join(filter(None, (sketch, worked))), answer
