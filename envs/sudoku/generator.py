"""Puzzles with one solution: a full grid at random, from which cells are taken while it stays the only one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from envs.sudoku.grid import Board
from envs.sudoku.solver import Digits, filled_by_singles, may_blank, rating, solutions

Difficulty = Literal["any", "easy", "medium", "hard"]


def full_grid(size: int, rng: np.random.Generator) -> Digits:
    """A grid without blanks; every one can come up."""
    digits = np.tile(np.arange(1, size + 1), (size * size, 1))
    orders: list[list[int]] = rng.permuted(digits, axis=1).tolist()
    return next(solutions(size, (0,) * (size * size), orders))


def draw_puzzle(size: int, blanks: int, difficulty: Difficulty, rng: np.random.Generator) -> Board | None:
    """One try at a puzzle with `blanks` blanks; None if this grid gave none of the wanted difficulty."""
    solution = full_grid(size, rng)
    order: list[int] = rng.permutation(size * size).tolist()
    givens = list(solution)
    taken = 0
    for tried, cell in enumerate(order):
        if taken == blanks or taken + len(order) - tried < blanks:
            break
        if _may_take(size, givens, cell, difficulty):
            givens[cell] = 0
            taken += 1
    if taken < blanks or difficulty not in ("any", rating(size, givens)):
        return None
    return Board(size, tuple(givens), solution, tuple(givens))


def _may_take(size: int, givens: list[int], cell: int, difficulty: Difficulty) -> bool:
    """Whether the puzzle stays one of at most this difficulty: less given never makes a puzzle easier."""
    if difficulty in ("any", "hard"):
        return may_blank(size, givens, cell)
    less = [*givens[:cell], 0, *givens[cell + 1 :]]
    return all(filled_by_singles(size, less, hidden=difficulty == "medium"))
