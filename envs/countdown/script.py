"""Scripted play of Countdown: trial sums up to one that comes to the target, or a formula that is only named.

A trial writes the numbers at hand before each operation and its result behind it, on whole numbers that are not
negative, so that every step can be learned by itself: `3 7 2: 3+7=10, 10 2: 10+2=12 no; 3 7 2: 3*7=21, ...`
Numbers are taken in the order they are given wherever that leads to the target: a narrow habit, easily copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from operator import add, floordiv, mul, sub

import numpy as np

from envs.countdown.env import Countdown, plan_text
from envs.countdown.formula import OPERATORS, Formula, Operation, operations_of, value_of, written
from envs.countdown.puzzle import Puzzle
from envs.countdown.search import plans
from envs.demonstrations import Script

RESULTS = {"+": add, "-": sub, "*": mul, "/": floordiv}
# Trials that fail before the one that does not.
MOST_MISSES = 2
# Random plans that are looked at for one trial that fails.
MOST_TRIES = 6


class CountdownScript(Script[Countdown]):
    """Plain careful play takes the first plan that works with the numbers in order; guided play the one it is given."""

    def sketches(self, env: Countdown) -> list[str]:
        """Plans that reach the target over whole numbers that are not negative."""
        return [plan_text(plan) for plan in ways(env)]

    def answers(
        self, env: Countdown, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        plan = None if sketch is None else env.sketch_key(sketch)
        assert (plan is None) == (sketch is None), f"not a sketch: {sketch}"
        solving = _solving(env, plan) if careful else None
        while True:
            if solving is None:
                answer = written(_careless(env.state.puzzle.numbers, plan, rng))
                yield f"{answer}.", answer
            else:
                yield _thought(env, solving, plan, rng), written(solving)


def ways(env: Countdown) -> Mapping[str, Formula]:
    """For each plan that reaches the target over whole numbers that are not negative, a formula that does so."""
    return plans(env.state.puzzle.numbers, env.state.puzzle.target, whole=True)


@lru_cache(maxsize=64)
def in_order(puzzle: Puzzle) -> Mapping[str, Formula]:
    """The same, but only formulas that take one number after another as they are given."""
    found = {}
    for operators in product(OPERATORS, repeat=len(puzzle.numbers) - 1):
        formula = _chained(puzzle.numbers, "".join(operators))
        if formula is not None and value_of(formula) == puzzle.target:
            found["".join(operators)] = formula
    return found


def _solving(env: Countdown, plan: str | None) -> Formula | None:
    for found in (in_order(env.state.puzzle), ways(env)):
        if plan is None and found:
            return next(iter(found.values()))
        if plan is not None and plan in found:
            return found[plan]
    return None


def _careless(numbers: tuple[int, ...], plan: str | None, rng: np.random.Generator) -> Formula:
    """The numbers in order, by a plan or by any operators."""
    operators = plan or [OPERATORS[i] for i in rng.integers(len(OPERATORS), size=len(numbers) - 1)]
    formula: Formula = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        formula = Operation(operator, formula, number)
    return formula


def _thought(env: Countdown, solving: Formula, plan: str | None, rng: np.random.Generator) -> str:
    misses = [_miss(env, plan, rng) for _ in range(rng.integers(MOST_MISSES + 1))]
    numbers = env.state.puzzle.numbers
    trials = [f"{_steps(numbers, miss)} no" for miss in dict.fromkeys(misses) if miss is not None]
    return "; ".join([*trials, f"{_steps(numbers, solving)} yes"]) + "."


def _steps(numbers: tuple[int, ...], formula: Formula) -> str:
    steps, at_hand = [], [str(number) for number in numbers]
    for operation in operations_of(formula):
        left, right, value = (str(value_of(part)) for part in (operation.left, operation.right, operation))
        steps.append(f"{' '.join(at_hand)}: {left}{operation.operator}{right}={value}")
        at_hand.remove(left)
        at_hand.remove(right)
        at_hand.insert(0, value)
    return ", ".join(steps)


def _miss(env: Countdown, plan: str | None, rng: np.random.Generator) -> Formula | None:
    """A formula of the numbers in order, of the plan if there is one, that misses the target."""
    puzzle = env.state.puzzle
    for _ in range(1 if plan else MOST_TRIES):
        operators = plan or "".join(OPERATORS[i] for i in rng.integers(len(OPERATORS), size=len(puzzle.numbers) - 1))
        formula = _chained(puzzle.numbers, operators)
        # What leaves the targets behind is no trial worth a thought, and hard to compute.
        if formula is not None and puzzle.target != value_of(formula) <= env.settings.largest_target:
            return formula
    return None


def _chained(numbers: tuple[int, ...], operators: str) -> Formula | None:
    """The numbers one after another, differences and quotients from the larger; None where a quotient is not whole."""
    formula: Formula = numbers[0]
    value = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        larger, smaller = max(value, number), min(value, number)
        if operator == "/" and (not smaller or larger % smaller):
            return None
        turned = operator in "-/" and value < number
        formula = Operation(operator, number, formula) if turned else Operation(operator, formula, number)
        value = RESULTS[operator](larger, smaller)
    return formula
