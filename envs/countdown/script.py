"""Scripted play of Countdown: trial sums up to one that comes to the target, or a formula that is only named.

A trial writes the numbers at hand before each operation and its result behind it, on whole numbers that are not
negative, so that every step can be learned by itself: `3 7 2: 3+7=10, 2 10: 2+10=12 no; 3 7 2: 3*7=21, ...`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from envs.countdown.env import Countdown, plan_text, random_formula
from envs.countdown.formula import Formula, Operation, operations_of, value_of, written
from envs.countdown.search import plans
from envs.demonstrations import Script

# Trials that fail before the one that does not.
MOST_MISSES = 2
# Orders of the numbers that are tried for a trial that suits a plan and fails.
MOST_ORDERS = 6


class CountdownScript(Script[Countdown]):
    """Plain careful play takes the first plan that works (`ways`); guided play the one it is given."""

    def sketches(self, env: Countdown) -> list[str]:
        return [plan_text(plan) for plan in ways(env)]

    def answers(
        self, env: Countdown, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        plan = None if sketch is None else env.sketch_key(sketch)
        assert (plan is None) == (sketch is None), f"not a sketch: {sketch}"
        found = ways(env)
        solving = found.get(plan or next(iter(found), "")) if careful else None
        while True:
            if solving is None:
                answer = written(_careless(env, plan, rng))
                yield f"{answer}.", answer
            else:
                yield _thought(env, solving, plan, rng), written(solving)


def ways(env: Countdown) -> Mapping[str, Formula]:
    """For each plan that reaches the target over whole numbers that are not negative, a formula that does so."""
    return plans(env.state.puzzle.numbers, env.state.puzzle.target, whole=True)


def _careless(env: Countdown, plan: str | None, rng: np.random.Generator) -> Formula:
    """Any formula, or any of a plan."""
    numbers = env.state.puzzle.numbers
    if plan is None:
        return random_formula(numbers, rng)
    first, *rest = (numbers[i] for i in rng.permutation(len(numbers)))
    formula: Formula = first
    for operator, number in zip(plan, rest, strict=True):
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
        at_hand.append(value)
    return ", ".join(steps)


def _miss(env: Countdown, plan: str | None, rng: np.random.Generator) -> Formula | None:
    """A formula, of the plan if there is one, that combines one number after another and misses the target."""
    puzzle = env.state.puzzle
    # What leaves the targets behind is no trial worth a thought, and hard to compute.
    most = env.settings.largest_target
    for _ in range(MOST_ORDERS):
        numbers = [puzzle.numbers[i] for i in rng.permutation(len(puzzle.numbers))]
        formula, value = _chained(numbers, plan, most, rng)
        if formula is not None and value != puzzle.target:
            return formula
    return None


def _chained(numbers: list[int], plan: str | None, most: int, rng: np.random.Generator) -> tuple[Formula | None, int]:
    """A formula of the numbers in their order and its value; None where a step has no whole result up to `most`."""
    formula: Formula = numbers[0]
    value = numbers[0]
    for step, number in enumerate(numbers[1:]):
        possible = _possible(value, number, most)
        operators = [o for o in possible if plan is None or o == plan[step]]
        if not operators:
            return None, 0
        operator = operators[rng.integers(len(operators))]
        # A difference and a quotient are made from the larger one.
        turned = operator in "-/" and value < number
        formula = Operation(operator, number, formula) if turned else Operation(operator, formula, number)
        value = possible[operator]
    return formula, value


def _possible(value: int, number: int, most: int) -> dict[str, int]:
    """Operator -> result, for those whose result is whole and at most `most`."""
    larger, smaller = max(value, number), min(value, number)
    results = {"+": larger + smaller, "-": larger - smaller, "*": larger * smaller}
    if smaller and larger % smaller == 0:
        results["/"] = larger // smaller
    return {operator: result for operator, result in results.items() if result <= most}
