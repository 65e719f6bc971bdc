"""Scripted play of Sokoban: a shortest solution told push by push, or a walk into the box without a look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from envs.demonstrations import Script
from envs.sokoban.env import Sokoban
from envs.sokoban.grid import MOVES, NAMES, Board, Push, cells_of
from envs.sokoban.search import living, next_pushes, pushes_left, search

# Careless players that hold one direction whatever comes; the others walk straight at a box.
HABIT_SHARE = 0.5
# Bounds on the plans of two pushes, for levels of many boxes: pushes looked at, plans tried, nodes to try one with.
NEAREST_PUSHES = 16
MOST_TRIES = 32
NODES_A_TRY = 2_000

Pushes = tuple[Push, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A walk and then pushes of one box in one direction. `trace`: each move and the cell the player gets to."""

    player: int
    box: int
    end: int
    stand: int
    name: str
    trace: tuple[tuple[str, int], ...]


class SokobanScript(Script[Sokoban]):
    """Sketches are the first two pushes of solutions within the limit; a sketch is followed if there is a quick way.

    Careful play without one is the shortest solution, and careless play where there is none.
    """

    def sketches(self, env: Sokoban) -> list[str]:
        return ["push " + ", then ".join(f"{env.place(cell)} {name}" for cell, name in plan) for plan in plans(env)]

    def answers(
        self, env: Sokoban, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        pushes = tuple(env.pushes_of(sketch) or ()) if sketch else ()
        if careful:
            yield from _careful(env, solution(env, pushes) or ())
        habit = NAMES[rng.integers(len(NAMES))] if rng.random() < HABIT_SHARE else None
        while True:
            yield _careless(env, pushes, habit)


def plans(env: Sokoban) -> list[Pushes]:
    """First two pushes, or the only one, of different solutions within the limit; those that look shortest first."""
    board = env.state
    options: list[tuple[int, Pushes]] = []
    for first in _nearest(board):
        after = _after(board, (first,))
        begun: list[Pushes] = [(first,)] if after.solved else [(first, second) for second in _nearest(after)]
        options += [(_estimate(board, plan), plan) for plan in begun]
    options.sort(key=lambda option: option[0])
    return [plan for _, plan in options[:MOST_TRIES] if solution(env, plan) is not None]


def solution(env: Sokoban, pushes: Pushes) -> tuple[str, ...] | None:
    """A solution within the limit that begins with these pushes, the shortest; None if there is none or no quick one.

    Without pushes it is the oracle's.
    """
    if not pushes:
        return env.solver.solve(env.state, env.actions_left).moves
    before = env.state.moves_of(pushes)
    if before is None:
        return None
    rest = search(_after(env.state, pushes), env.actions_left - len(before), NODES_A_TRY)
    return None if rest.moves is None else (*before, *rest.moves)


def _nearest(board: Board) -> list[Push]:
    found = next_pushes(board.room, living(board.room), board.boxes, board.player)
    return [(cell, name) for _, cell, _, name in islice(found, NEAREST_PUSHES)]


def _after(board: Board, pushes: Pushes) -> Board:
    """After pushes that can be made; without moves known to solve it."""
    for cell, name in pushes:
        board = Board(board.room, cell - board.room.step(name), board.boxes).moved(name)
    return board


def _estimate(board: Board, pushes: Pushes) -> int:
    """Moves of the pushes and, as if each box were alone, the pushes after them."""
    far = pushes_left(board.room)
    return len(board.moves_of(pushes) or ()) + sum(far[cell] for cell in cells_of(_after(board, pushes).boxes))


def _careful(env: Sokoban, moves: Sequence[str]) -> Iterator[tuple[str, str]]:
    width = env.settings.actions_per_turn
    for start in range(0, len(moves), width):
        runs = runs_of(env.state, moves[start:])
        yield _told(env, runs, width), " || ".join(moves[start : start + width])


def _told(env: Sokoban, runs: Sequence[Run], width: int) -> str:
    """The runs of the next `width` moves, cell by cell: each is next to the one it follows from."""
    said: list[str] = []
    for run in runs:
        if width <= 0:
            break
        steps = ", ".join(f"{name} {env.place(cell)}" for name, cell in run.trace[:width])
        aim = f"box {env.place(run.box)} to {env.place(run.end)} {run.name}"
        said.append(f"{aim}. P {env.place(run.player)} to {env.place(run.stand)}: {steps}.")
        width -= len(run.trace)
    return " ".join(said)


def runs_of(board: Board, moves: Sequence[str]) -> list[Run]:
    """The moves of a solution, cut where another box or direction is next."""
    runs: list[Run] = []
    while moves:
        start, trace, pushed = board.player, list[tuple[str, int]](), list[Push]()
        for name in moves:
            after = board.moved(name)
            push = (after.player, name) if after.boxes != board.boxes else None
            if pushed and (push is None or name != pushed[0][1]):
                break
            trace.append((name, after.player))
            pushed += [push] if push else []
            board = after
        moves = moves[len(trace) :]
        if not pushed:
            break
        (box, name), step = pushed[0], board.room.step(pushed[0][1])
        runs.append(Run(start, box, pushed[-1][0] + step, box - step, name, tuple(trace)))
    return runs


def _careless(env: Sokoban, pushes: Pushes, habit: str | None) -> tuple[str, str]:
    """Hold a direction, or go straight at a box (that of the sketch, if it is still there) and on."""
    board, width = env.state, env.settings.actions_per_turn
    boxes = cells_of(board.boxes)
    box = pushes[0][0] if pushes and pushes[0][0] in boxes else boxes[0]
    moves = [habit] * width if habit else _straight(board, box, width)
    return f"P {env.place(board.player)}, box {env.place(box)}: {', '.join(moves)}.", " || ".join(moves)


def _straight(board: Board, box: int, width: int) -> list[str]:
    """Moves to a cell as if nothing stood in the way, and the last one again and again."""
    columns = board.room.columns
    down, right = (
        here - there for here, there in zip(divmod(box, columns), divmod(board.player, columns), strict=True)
    )
    moves: list[str] = []
    for name in NAMES:
        rows, sideways = MOVES[name]
        moves += [name] * max(rows * down, sideways * right, 0)
    return (moves + moves[-1:] * width)[:width]
