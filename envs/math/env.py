"""Math: answer a question of a data set; right is what a maths-equivalence library takes for equal to the reference.

Even seeds ask training records, odd seeds held-out ones, and demonstrations training records whatever their seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from configs.environments import MathSettings
from configs.seeds import FIRST_DEMONSTRATION_SEED
from envs.base import BadEnvironment, Failure, TextEnv
from envs.math.answers import MOST_CANONICAL, checked, last_boxed, normal
from envs.math.grading import check_grading, graders, is_right
from envs.math.parts import split_records
from envs.math.records import Record
from envs.protocol import MAX_TEXT, form, read_answer

METHOD_WORD = re.compile(r"[^\W_]+")
# fmt: off
STOP_WORDS = frozenset([
    "a", "an", "and", "as", "at", "by", "do", "first", "for", "from", "i", "in", "into", "is", "it", "its", "method",
    "of", "on", "or", "so", "that", "the", "then", "this", "to", "up", "use", "using", "we", "will", "with", "you",
    "your",
])
# fmt: on
# A method is a short sentence: what comes later is not it.
MOST_METHOD = 400
MOST_KEY = 200


@dataclass(frozen=True, slots=True)
class Question:
    """A record that is asked: number `number` (from 0) of its part.

    `turn`: that of the last answer that was graded, 0 for none.
    """

    record: Record
    number: int
    held_out: bool
    turn: int = 0
    solved: bool = False


class Math(TextEnv):
    """Reward 1 for an answer that equals the reference, else 0. A sketch is a method in a few words."""

    one_action_an_answer = True
    settings: MathSettings
    state: Question

    def __init__(self, settings: MathSettings) -> None:
        """Loads the records and starts the graders, once a process; waits for the records. Raises BadEnvironment."""
        super().__init__(settings)
        self._parts = split_records(settings)
        graders(settings.grade_memory_mib).start()

    def check(self) -> None:
        try:
            check_grading(self.settings)
        except Failure as failure:
            raise BadEnvironment(f"answers cannot be graded: {failure}") from failure

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        return f"Solve the problem step by step. Reply {form(self.settings, '42')}: the final answer alone in the tag."

    def render(self) -> str:
        return self.state.record.question

    def _state_text(self) -> str:
        # An answer that could not be read was graded by nobody.
        return "Wrong." if self.turns and self.turns == self.state.turn else ""

    def _ending(self) -> str:
        if self._cause:
            return "The answer could not be graded."
        return "Right." if self.solved else self._state_text() or "It is over."

    def sketch_request(self, number: int) -> str:
        return "\nFirst name the method in one short sentence." if number == 0 else "Name another method."

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nFollow\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """The words that carry meaning, sorted: another order is the same method. None if there is none."""
        words = {word for word in METHOD_WORD.findall(sketch[:MOST_METHOD].lower()) if word not in STOP_WORDS}
        return " ".join(sorted(words))[:MOST_KEY] or None

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Question:
        held_out = self.seed % 2 == 1 and self.seed < FIRST_DEMONSTRATION_SEED
        records = self._parts.held_out if held_out else self._parts.training
        number = int(self.np_random.integers(len(records)))
        return Question(records[number], number, held_out)

    def _words(self, answer: str) -> list[str] | None:
        if read_answer(answer, self.settings.answer_tag) is not None:
            return super()._words(answer)
        boxed = last_boxed(answer[-MAX_TEXT:])
        return [boxed.strip()] if boxed and boxed.strip() else None

    def _act(self, word: str) -> tuple[str, float]:
        said = checked(word)
        right = is_right(checked(self.state.record.answer), said, self.settings)
        self.state = replace(self.state, solved=right, turn=self.turns)
        return normal(said)[:MOST_CANONICAL], float(right)

    @property
    def solved(self) -> bool:
        return self.state.solved

    def _answer(self) -> str:
        # The answers before it were wrong: two ways to be wrong first are one solution.
        return self.done[-1] if self.done else ""

    # --- how well it can be played -----------------------------------------------------------------------------------

    def _ceiling(self) -> float:
        """Every question has its reference answer."""
        return 1.0

    def _oracle(self) -> str:
        return self.state.record.answer

    def _optimal_length(self) -> int:
        return 1

    def random_answer(self, rng: np.random.Generator) -> str:
        """The reference answer of another record of the same part; it can be right by chance."""
        records = self._parts.held_out if self.state.held_out else self._parts.training
        others = max(1, len(records) - 1)
        return records[(self.state.number + 1 + int(rng.integers(others))) % len(records)].answer
