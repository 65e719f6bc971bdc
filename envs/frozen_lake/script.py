"""Scripted play of FrozenLake: a safe shortest way with a look at the cell ahead, or a blind walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from envs.demonstrations import Script
from envs.frozen_lake.env import LONGEST_OPENING, FrozenLake
from envs.frozen_lake.lake import MOVES, NAMES, Cell, Lake

# Careless players that hold one direction whatever comes; the others walk straight at the goal.
HABIT_SHARE = 0.7


class FrozenLakeScript(Script[FrozenLake]):
    """Sketches are openings of ways within the limit; guided play makes those moves and goes on as plain play does."""

    def sketches(self, env: FrozenLake) -> list[str]:
        openings = env.state.openings(LONGEST_OPENING, env.settings.action_limit)
        return [f"begin {', '.join(opening)}" for opening in openings]

    def answers(
        self, env: FrozenLake, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        opening = [] if sketch is None else _moves(env, sketch)
        habit = NAMES[rng.integers(len(NAMES))] if rng.random() < HABIT_SHARE else None
        width = env.settings.actions_per_turn
        while True:
            lake = env.state
            if careful and _falls(lake, opening):
                opening = []  # a slip has made it unsafe
            plan = _careful_moves(lake, opening) if careful else [*opening, *[_careless_move(lake, habit)] * width]
            moves, opening = plan[:width], opening[width:]
            trace = _trace(lake, moves)
            seen = ", ".join(f"{move} {lake.look(cell)}" if careful else move for move, cell in trace)
            yield f"{_bearing(lake.player, lake.goal)}: {seen}.", " || ".join(moves)


def _moves(env: FrozenLake, sketch: str) -> list[str]:
    key = env.sketch_key(sketch)
    assert key is not None, f"not a sketch: {sketch}"
    return key.split(",")


def _falls(lake: Lake, moves: Sequence[str]) -> bool:
    """Whether moves that do not slip lead into a hole."""
    for move in moves:
        lake = lake.moved(move)
        if lake.player in lake.holes:
            return True
    return False


def _careful_moves(lake: Lake, opening: Sequence[str]) -> list[str]:
    """The opening and the shortest way on from it."""
    after = lake
    for move in opening:
        after = after.moved(move)
    return [*opening, *(lake.route(after.player, lake.goal) or ())] or [NAMES[0]]


def _careless_move(lake: Lake, habit: str | None) -> str:
    """A move without a look at what lies there: the habit, or toward the goal."""
    here, goal = lake.player, lake.goal
    return habit or next(name for name in NAMES if _distance(_ahead(here, name), goal) < _distance(here, goal))


def _trace(lake: Lake, moves: list[str]) -> list[tuple[str, Cell]]:
    """Each move with the cell it leads to, on the board or off it, if it does not slip."""
    here, seen = lake.player, []
    for move in moves:
        here = _ahead(here, move)
        seen.append((move, here))
    return seen


def _ahead(cell: Cell, name: str) -> Cell:
    return cell[0] + MOVES[name][0], cell[1] + MOVES[name][1]


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _bearing(start: Cell, end: Cell) -> str:
    """Rows, then columns, from where to where and which way: each word next to the two numbers it follows from."""
    vertical = "up" if end[0] < start[0] else "down" if end[0] > start[0] else "same"
    horizontal = "left" if end[1] < start[1] else "right" if end[1] > start[1] else "same"
    return f"r{start[0] + 1} to r{end[0] + 1} {vertical}, c{start[1] + 1} to c{end[1] + 1} {horizontal}"
