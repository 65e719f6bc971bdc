"""Countdown: a formula that uses each number once and comes to the target.

Values are exact: fractions and negative numbers on the way are allowed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from configs.environments import CountdownSettings
from envs.base import BadEnvironment, TextEnv
from envs.countdown.formula import OPERATORS, SIGNS, Formula, Operation, canonical, numbers_of, read_formula, value_of
from envs.countdown.formula import written as formula_text
from envs.countdown.puzzle import Puzzle, draw
from envs.countdown.search import solution
from envs.protocol import form

# The rarest puzzles the settings allow, 6 numbers up to 999 for a target of 1, are one in 6000 draws.
MOST_DRAWS = 100_000

# A hyphen inside a word is no operator.
OPERATOR = re.compile(
    r"[+*/×÷−·]|(?<![a-z])-|-(?![a-z])|\b(?:plus|add|minus|subtract|times|multiply|divided by|divide)\b",
    re.IGNORECASE | re.ASCII,
)
# As in `- plan * then +`: the sign of a list.
BULLET = re.compile(r"^[ \t]*[-+*·−][ \t]*(?=plan\b)", re.IGNORECASE | re.ASCII | re.MULTILINE)
WORDS = {
    **dict.fromkeys(("plus", "add"), "+"),
    **dict.fromkeys(("minus", "subtract"), "-"),
    **dict.fromkeys(("times", "multiply"), "*"),
    **dict.fromkeys(("divided by", "divide"), "/"),
}
EXAMPLE_PLAN = "*+-/+"


@dataclass(frozen=True, slots=True)
class Game:
    """A puzzle and what came of the formulas so far.

    `told`: what is said of the last one, made in turn `turn`. `right_numbers`: whether one used each number once.
    """

    puzzle: Puzzle
    told: str = ""
    turn: int = 0
    right_numbers: bool = False
    solved: bool = False


class Countdown(TextEnv):
    """Reward 1 for the target; `right_numbers_reward`, at the end, if some formula used the right numbers.

    A sketch is a plan: the operators in the order they are applied, the left part of an operation before its right.
    """

    one_action_an_answer = True
    settings: CountdownSettings
    state: Game

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        return (
            "Reach the target with a formula of + - * / and brackets that uses each number once. "
            f"Reply {form(self.settings, '(1+2)*3')}."
        )

    def render(self) -> str:
        puzzle = self.state.puzzle
        # The numbers last: they then stand at the same distance from every answer, which small policies copy by.
        return f"Target {puzzle.target} from {' '.join(map(str, puzzle.numbers))}"

    def _state_text(self) -> str:
        # An answer that could not be read changed nothing: the formula before it has been told already.
        return self.state.told if self.turns == self.state.turn else ""

    def _ending(self) -> str:
        return "Solved." if self.solved else f"{self._state_text()} It is over.".strip()

    def sketch_request(self, number: int) -> str:
        if number:
            return "Name another plan."
        return f"\nFirst name the operators in order, as: {plan_text(EXAMPLE_PLAN[: self._steps])}"

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nFollow\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """The operators of a plan, such as `*+`; None unless there is one fewer than numbers."""
        found = []
        for match in OPERATOR.finditer(BULLET.sub("", sketch)):
            word = match[0].lower()
            found.append(WORDS.get(word) or word.translate(SIGNS))
            if len(found) > self._steps:
                return None
        return "".join(found) if len(found) == self._steps else None

    @property
    def _steps(self) -> int:
        """Operations in a formula of all numbers."""
        return len(self.state.puzzle.numbers) - 1

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Game:
        for _ in range(MOST_DRAWS):
            puzzle = draw(self.np_random, self.settings)
            if puzzle is not None:
                return Game(puzzle)
        settings = self.settings
        raise BadEnvironment(
            f"env.largest_target {settings.largest_target} with env.largest_number {settings.largest_number}: none of "
            f"{MOST_DRAWS} formulas of {settings.least_numbers} to {settings.most_numbers} numbers (env.least_numbers, "
            "env.most_numbers) comes to such a target: use a larger env.largest_target or smaller numbers"
        )

    def _act(self, word: str) -> tuple[str, float]:
        formula = read_formula(word)
        told, right_numbers, solved = judged(self.state.puzzle, formula)
        right_numbers |= self.state.right_numbers
        self.state = replace(self.state, told=told, turn=self.turns, right_numbers=right_numbers, solved=solved)
        return canonical(formula), float(solved)

    @property
    def solved(self) -> bool:
        return self.state.solved

    def _closing_reward(self) -> float:
        return self.settings.right_numbers_reward if self.state.right_numbers else 0.0

    def _answer(self) -> str:
        # The formulas before it failed, and two ways to fail first are one solution.
        return self.done[-1] if self.done else ""

    # --- how well it can be played -----------------------------------------------------------------------------------

    def _ceiling(self) -> float:
        """Exact: whether some formula reaches the target (`search.solution`)."""
        return float(self._solution() is not None)

    def _oracle(self) -> str | None:
        found = self._solution()
        return None if found is None else formula_text(found)

    def _optimal_length(self) -> int | None:
        return None if self._solution() is None else 1

    def _solution(self) -> Formula | None:
        return solution(self.state.puzzle.numbers, self.state.puzzle.target)

    def random_answer(self, rng: np.random.Generator) -> str:
        return formula_text(random_formula(self.state.puzzle.numbers, rng))


def plan_text(plan: str) -> str:
    """`plan * then +` for `*+`."""
    return f"plan {' then '.join(plan)}"


def judged(puzzle: Puzzle, formula: Formula) -> tuple[str, bool, bool]:
    """What to say of a formula; whether it uses each number once; whether it reaches the target as well."""
    used, given = Counter(numbers_of(formula)), Counter(puzzle.numbers)
    if used != given:
        missing, extra = sorted((given - used).elements()), sorted((used - given).elements())
        parts = [f"{_listed(missing)} missing"] * bool(missing) + [f"{_listed(extra)} too many"] * bool(extra)
        return f"Wrong numbers: {', '.join(parts)}.", False, False
    try:
        value = value_of(formula)
    except ZeroDivisionError:
        return "That divides by zero.", True, False
    return f"That is {value}, not {puzzle.target}.", True, value == puzzle.target


def _listed(numbers: list[int]) -> str:
    """A hostile formula has hundreds of numbers; no puzzle has more than 6."""
    return " ".join(map(str, numbers[:6]))


def random_formula(numbers: tuple[int, ...], rng: np.random.Generator) -> Formula:
    """Each number once, any operators, any order; its value may be negative, a fraction or undefined."""
    parts: list[Formula] = list(numbers)
    while len(parts) > 1:
        left = parts.pop(int(rng.integers(len(parts))))
        right = parts.pop(int(rng.integers(len(parts))))
        parts.append(Operation(OPERATORS[rng.integers(len(OPERATORS))], left, right))
    return parts[0]
