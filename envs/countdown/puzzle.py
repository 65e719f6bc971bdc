"""Puzzles: numbers and a target that they reach, drawn by making a formula at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from configs.environments import CountdownSettings

# Of 6 numbers: how many there are, the numbers, and two places and an operator for each of 5 steps.
_DRAWS = 1 + 6 + 3 * 5


@dataclass(frozen=True, slots=True)
class Puzzle:
    """`numbers` in the order they are shown."""

    numbers: tuple[int, ...]
    target: int


def draw(rng: np.random.Generator, settings: CountdownSettings) -> Puzzle | None:
    """Numbers and what a random formula makes of them; None where that is no target.

    All values on the way are whole and positive. No target is one of the numbers. About 5 µs: all random numbers are
    drawn at once.
    """
    draws = iter(rng.random(_DRAWS).tolist())
    spread = settings.most_numbers - settings.least_numbers + 1
    count = settings.least_numbers + int(next(draws) * spread)
    numbers = tuple(1 + int(next(draws) * settings.largest_number) for _ in range(count))
    values = list(numbers)
    while len(values) > 1:
        a = values.pop(int(next(draws) * len(values)))
        b = values.pop(int(next(draws) * len(values)))
        values.append(_combined(max(a, b), min(a, b), next(draws)))
    target = values[0]
    return Puzzle(numbers, target) if target <= settings.largest_target and target not in numbers else None


def _combined(larger: int, smaller: int, chance: float) -> int:
    """By one of the operators that lead to a whole positive number, each as likely."""
    divides = larger % smaller == 0
    differs = larger != smaller
    which = int(chance * (2 + divides + differs))
    if which == 0:
        return larger + smaller
    if which == 1:
        return larger * smaller
    return larger - smaller if which == 2 and differs else larger // smaller
