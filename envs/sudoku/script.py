"""Scripted play of Sudoku: cells that the shown grid leaves one digit for, with the digits seen; or bare guesses.

A thought reads only the last grid that is written out: `r1c2 row14 col3 box13 so2`. Where a turn has to go on with what
it fills itself, the thought writes the grid so far and reads that. `so24 try4` is a guess: the script always guesses
right, the policy that learns from it will not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from envs.demonstrations import Script
from envs.sudoku.env import Sudoku, digits_seen, grid_text, place, placement
from envs.sudoku.grid import Board, candidates, shape

MOST_SURE, MOST_UNSURE = 20, 10
# Careful games go on in the thought then: a written grid costs half of what a turn does in a small context.
PATIENCE = 3


class SudokuScript(Script[Sudoku]):
    """Careful play places right digits, with the reasons the grid gives; careless play any that no given forbids."""

    # Later ones change single digits of a grid that is full and wrong.
    careless_turns = 2

    def sketches(self, env: Sudoku) -> list[str]:
        """Cells with one candidate at the start, alone and in pairs; then, fewer, those that take a guess."""
        board = env.state
        options = {cell: len(candidates(shape(board.size), board.givens, cell)) for cell in board.blanks}
        sure = [cell for cell, count in options.items() if count == 1]
        unsure = [cell for cell, count in options.items() if count > 1]
        orders = [*_thinned(_orders(sure), MOST_SURE), *_thinned(_orders(unsure), MOST_UNSURE)]
        return ["start " + ", ".join(place(cell, board.size) for cell in order) for order in orders]

    def answers(
        self, env: Sudoku, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        wanted = [] if sketch is None else _cells(env, sketch)
        while True:
            # A full grid that is wrong shows no way on: nothing to think about but a change.
            if careful and env.state.empty:
                yield _careful_turn(env, wanted)
            else:
                yield "guess", _careless_answer(env, wanted, rng)


def _orders(cells: list[int]) -> list[tuple[int, ...]]:
    """Each cell alone, and each followed by the next one."""
    pairs = list(zip(cells, cells[1:] + cells[:1], strict=True)) if len(cells) > 1 else []
    return [*((cell,) for cell in cells), *pairs]


def _thinned(orders: list[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """At most `most` of them, evenly."""
    return [orders[number * len(orders) // most] for number in range(most)] if len(orders) > most else orders


def _cells(env: Sudoku, sketch: str) -> list[int]:
    key = env.sketch_key(sketch)
    assert key is not None, f"not a sketch: {sketch}"
    names = {place(cell, env.settings.size): cell for cell in env.state.blanks}
    return [names[name] for name in key.split()]


def _careful_turn(env: Sudoku, wanted: Sequence[int]) -> tuple[str, str]:
    """Thought and answer: what the shown grid tells, and more only as far as the turns after this one have no room."""
    board, settings = env.state, env.settings
    room = min(settings.actions_per_turn, env.actions_left)
    turns = settings.max_turns if settings.show_seen else min(settings.max_turns, PATIENCE)
    later = max(turns - env.turns - 1, 0) * settings.actions_per_turn
    due = min(room, len(board.empty) - later)
    thoughts: list[str] = []
    placed: list[int] = []
    while not placed or len(placed) < due:
        if placed:
            thoughts.append(grid_text(board.grid, board.size))
        wave = _wave(board, wanted, settings.actions_per_turn == 1)[: room - len(placed)]
        thoughts.append(", ".join(_reasons(board, cell, settings.show_seen) for cell in wave))
        for cell in wave:
            board = board.placed(cell, board.solution[cell])
        placed += wave
    return "\n".join(thoughts), " || ".join(placement(cell, board.grid[cell], board.size) for cell in placed)


def _wave(board: Board, wanted: Sequence[int], one_by_one: bool) -> list[int]:
    """Empty cells to fill by what the grid tells: those wanted, then all with one candidate, else one with fewest.

    Played one by one, the last of them, even if it takes a guess: a habit that is easily copied, as it stands at the
    end of the message, and that a good start mends.
    """
    options = {cell: len(candidates(shape(board.size), board.grid, cell)) for cell in board.empty}
    first = [cell for cell in wanted if cell in options]
    if one_by_one:
        return [*first, *board.empty[::-1]]
    sure = [cell for cell, count in options.items() if count == 1 and cell not in first]
    return first + sure or [min(options, key=lambda cell: options[cell])]


def _reasons(board: Board, cell: int, told: bool) -> str:
    """The digits a cell sees, next to what they leave for it; `told`: as the state tells them."""
    form = shape(board.size)
    in_units = ["".join(str(board.grid[o]) for o in form.units[unit] if board.grid[o]) for unit in form.units_of[cell]]
    row, column, box = (digits or "-" for digits in in_units)
    seen = digits_seen(board, cell) if told else f"row{row} col{column} box{box}"
    left = "".join(map(str, candidates(form, board.grid, cell)))
    digit = board.solution[cell]
    choice = f" try{digit}" if len(left) > 1 else ""
    return f"{place(cell, board.size)} {seen} so{left}{choice}"


def _careless_answer(env: Sudoku, wanted: Sequence[int], rng: np.random.Generator) -> str:
    """Any digits that no given forbids: in the wanted cells, then the last ones; in a full grid one digit anew."""
    board = env.state
    first = [cell for cell in wanted if not board.grid[cell]]
    cells = first + [cell for cell in board.empty[::-1] if cell not in first] or [int(rng.choice(board.blanks))]
    guesses = [placement(cell, int(rng.choice(board.legal(cell))), board.size) for cell in cells]
    return " || ".join(guesses[: env.settings.actions_per_turn])
