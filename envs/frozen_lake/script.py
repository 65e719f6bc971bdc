"""Scripted play of FrozenLake: a safe shortest way with a look at the cell ahead, or a blind walk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from envs.demonstrations import Script
from envs.frozen_lake.env import FrozenLake, place
from envs.frozen_lake.lake import MOVES, NAMES, Cell, Lake

# Careless players that hold one direction whatever comes; the others walk straight at the goal.
HABIT_SHARE = 0.7


class FrozenLakeScript(Script[FrozenLake]):
    def sketches(self, env: FrozenLake) -> list[str]:
        return [f"via {place(cell)}" for cell in way_points(env)]

    def answers(
        self, env: FrozenLake, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        target = None if sketch is None else _cell(env, sketch)
        habit = NAMES[rng.integers(len(NAMES))] if rng.random() < HABIT_SHARE else None
        while True:
            lake = env.state
            bearing = _bearing(lake.player, target or lake.goal)
            if lake.player == target:
                target = None
                bearing += f"; {_bearing(lake.player, lake.goal)}"
            width = env.settings.actions_per_turn
            moves = _careful_moves(lake, target)[:width] if careful else [_careless_move(lake, target, habit)] * width
            trace = _trace(lake, moves)
            seen = ", ".join(f"{move} {lake.look(cell)}" if careful else move for move, cell in trace)
            if target in [cell for _, cell in trace[:-1]]:
                target = None
            yield f"{bearing}: {seen}.", " || ".join(moves)


def way_points(env: FrozenLake) -> list[Cell]:
    """Cells, start and goal left out, that a safe walk from the player to the goal can pass within the limit."""
    lake = env.state
    cells = [divmod(index, lake.size) for index in range(lake.size**2)]
    routes = {cell: lake.route_via(cell) for cell in cells if cell not in (lake.player, lake.goal)}
    return [cell for cell, route in routes.items() if route is not None and len(route) <= env.settings.action_limit]


def _cell(env: FrozenLake, sketch: str) -> Cell:
    key = env.sketch_key(sketch)
    assert key is not None, f"not a sketch: {sketch}"
    row, column = key.split(",")
    return int(row) - 1, int(column) - 1


def _careful_moves(lake: Lake, target: Cell | None) -> list[str]:
    route = lake.route(lake.player, lake.goal) if target is None else lake.route_via(target)
    # A slip can leave the player where the way-point is cut off by the goal: then the goal itself is the plan.
    return route or lake.route(lake.player, lake.goal) or [NAMES[0]]


def _careless_move(lake: Lake, target: Cell | None, habit: str | None) -> str:
    """A move without a look at what lies there: the habit, or toward the aim."""
    here, aim = lake.player, lake.goal if target is None else target
    return habit or next(name for name in NAMES if _distance(_ahead(here, name), aim) < _distance(here, aim))


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
