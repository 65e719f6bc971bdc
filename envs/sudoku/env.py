"""Sudoku as a text game: fill the blanks of a grid so that each row, column and box holds each digit once.

A digit may be placed unless a *given* one forbids it. Own digits never forbid any: they can be overwritten, at one
action each, and may clash until then; nothing ends the game but the solution and the limits. So the right digits can
be placed in any order, whatever stands in the grid, and the cells that do not hold theirs are exactly the actions that
are still needed. A whole grid is short for placements in all cells it changes, and counts as that many actions.
"""

from __future__ import annotations

import re

import numpy as np

from configs.environments import SudokuSettings
from envs.base import BadEnvironment, TextEnv
from envs.protocol import Illegal, Unreadable, form
from envs.sudoku.generator import draw_puzzle
from envs.sudoku.grid import Board, Digits, candidates, shape

# Blanks of any length are one blank before this reads a word, so that no run of them is tried in two ways.
PLACEMENT = re.compile(r"r ?(\d{1,4}) ?c ?(\d{1,4})(?: ?= ?| )(\d{1,4})", re.IGNORECASE | re.ASCII)
WHOLE_GRID = re.compile(r"[0-9\s|]+", re.ASCII)
CELL = re.compile(r"\br(?:ow)?\s{0,3}(\d{1,4})\W{0,3}c(?:ol(?:umn)?)?\s{0,3}(\d{1,4})", re.IGNORECASE | re.ASCII)

BLANK = "0"
# Later cells of a sketch say little of where to start.
MOST_SKETCHED = 3
# Full grids that are tried before the settings are said to allow no puzzle.
MOST_GRIDS = 200


class Sudoku(TextEnv):
    """Reward 1 for the solution; `partial_credit` times the share of blanks filled rightly at the end without it.

    A sketch is the cells to fill first, in their order.
    """

    settings: SudokuSettings
    state: Board

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        settings = self.settings
        size, most = settings.size, settings.actions_per_turn
        box = 2 if size == 4 else 3
        example = " || ".join(["r1c2=3", "r4c1=2"][:most])
        whole = " or the whole grid" if most >= settings.blanks else ""
        seen = " Behind an empty cell: the digits in its row, column and box." if settings.show_seen else ""
        return (
            f"Fill every {BLANK} so that each row, column and {box}x{box} box holds 1 to {size} once. "
            f"r1c2: row 1, column 2.{seen} Own digits can be replaced, given ones not. "
            f"Reply {form(settings, example)}, at most {most} a turn{whole}."
        )

    def sketch_request(self, number: int) -> str:
        return "\nFirst name the cells to start with, as: start r1c2, r3c4" if number == 0 else "Name another start."

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nGo\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """Such as `r1c2 r3c4`: the first cells named that are not given, each once, in their order; 3 at most."""
        size, cells = self.settings.size, []
        for found in CELL.finditer(sketch):
            cell = cell_at(int(found[1]), int(found[2]), size)
            if cell is not None and not self.state.givens[cell] and cell not in cells:
                cells.append(cell)
                if len(cells) == MOST_SKETCHED:
                    break
        return " ".join(place(cell, size) for cell in cells) or None

    def render(self) -> str:
        """The grid: a line a row, digits separated by blanks."""
        return grid_text(self.state.grid, self.settings.size)

    def _state_text(self) -> str:
        board = self.state
        if self.settings.show_seen and board.empty:
            seen = ", ".join(f"{place(cell, board.size)} {digits_seen(board, cell)}" for cell in board.empty)
            return f"{self._own_digits()}{seen}"
        # The first message has the grid already.
        return self.render() if self.turns else ""

    def _own_digits(self) -> str:
        """A line such as `own r1c3=2, r2c1=1` where one of them shows to be wrong, as nothing else tells of them."""
        board = self.state
        # Told in every message they would make a game a fifth longer, which a small context has no room for.
        if not board.contradicts_itself:
            return ""
        own = [placement(cell, board.grid[cell], board.size) for cell in board.blanks if board.grid[cell]]
        return f"own {', '.join(own)}\n"

    def _ending(self) -> str:
        return "Solved." if self.solved else "Not solved."

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Board:
        settings = self.settings
        for _ in range(MOST_GRIDS):
            board = draw_puzzle(settings.size, settings.blanks, settings.difficulty, self.np_random)
            if board is not None:
                return board
        remedy = "fewer blanks"
        if settings.difficulty in ("medium", "hard"):
            # Every puzzle of size 4 with one solution is easy.
            remedy = "difficulty any or easy" if settings.size == 4 else "50 to 56 blanks, or difficulty any"
        raise BadEnvironment(
            f"env.blanks {settings.blanks} with env.size {settings.size} and env.difficulty {settings.difficulty}: "
            f"none of {MOST_GRIDS} grids has such a puzzle with one solution: use {remedy}"
        )

    def _words(self, answer: str) -> list[str] | None:
        words = super()._words(answer)
        digits = self._whole_grid(words[0]) if words is not None and len(words) == 1 else None
        return words if digits is None or 0 in digits else self._changes(digits)

    def _whole_grid(self, word: str) -> list[int] | None:
        """The digits of a grid that is written out, 0 for a blank; None if it is none of this size."""
        if WHOLE_GRID.fullmatch(word) is None:
            return None
        digits = [int(letter) for letter in word if letter.isdecimal()]
        return digits if len(digits) == len(self.state.grid) else None

    def _changes(self, digits: list[int]) -> list[str]:
        """The placements a whole grid stands for; one against a given where it has any, so that nothing is placed."""
        board = self.state
        changed = [cell for cell, digit in enumerate(digits) if digit != board.grid[cell]]
        on_givens = [cell for cell in changed if board.givens[cell]]
        # The same wrong grid again is still an action.
        cells = on_givens[:1] or changed or board.blanks[:1]
        return [placement(cell, digits[cell], board.size) for cell in cells]

    def _act(self, word: str) -> tuple[str, float]:
        size = self.settings.size
        found = PLACEMENT.fullmatch(" ".join(word.split()))
        if found is None:
            if 0 in (self._whole_grid(word) or ()):
                raise Unreadable(f"the grid has a {BLANK}: fill every cell.")
            raise Unreadable(f"an action is as r1c2=3, or an answer is all {size * size} digits.")
        row, column, digit = (int(number) for number in found.groups())
        cell = cell_at(row, column, size)
        if cell is None:
            raise Illegal(f"rows and columns are 1 to {size}.")
        self._refuse(cell, digit)
        self.state = self.state.placed(cell, digit)
        return placement(cell, digit, size), float(self.solved)

    def _refuse(self, cell: int, digit: int) -> None:
        """Raises Illegal if the rules or a given forbid the digit in this cell."""
        if not 1 <= digit <= self.settings.size:
            raise Illegal(f"digits are 1 to {self.settings.size}.")
        if self.state.givens[cell]:
            raise Illegal(f"{place(cell, self.settings.size)} is given.")
        clash = self.state.clash(cell, digit)
        if clash is not None:
            raise Illegal(f"{digit} is in {clash} already.")

    @property
    def solved(self) -> bool:
        return self.state.grid == self.state.solution

    def _answer(self) -> str:
        """The digits of the grid, row by row, 0 for a blank: the order of the placements makes no other solution."""
        return "".join(map(str, self.state.grid))

    def _closing_reward(self) -> float:
        return self.settings.partial_credit * (1 - len(self.state.unsolved) / self.settings.blanks)

    # --- how well it can be played -----------------------------------------------------------------------------------

    def _ceiling(self) -> float:
        """1 or 0, exact: every cell without its right digit takes one action, and no more."""
        return float(len(self.state.unsolved) <= self.actions_left)

    def _oracle(self) -> str | None:
        if not self._ceiling():
            return None
        board = self.state
        cells = board.unsolved[: self.settings.actions_per_turn]
        return " || ".join(placement(cell, board.solution[cell], board.size) for cell in cells)

    def _optimal_length(self) -> int:
        return len(self.state.unsolved)

    def random_answer(self, rng: np.random.Generator) -> str:
        """Digits that no given forbids in the empty cells, as many as a turn allows; in a full grid one digit anew."""
        board = self.state
        cells = rng.permutation(board.empty)[: self.settings.actions_per_turn].tolist() or [rng.choice(board.blanks)]
        return " || ".join(placement(cell, int(rng.choice(board.legal(cell))), board.size) for cell in cells)


def cell_at(row: int, column: int, size: int) -> int | None:
    """Number of the cell in a row and a column counted from 1; None if it is off the board."""
    return (row - 1) * size + column - 1 if 1 <= row <= size and 1 <= column <= size else None


def place(cell: int, size: int) -> str:
    """Such as `r1c2`, counted from 1."""
    return f"r{cell // size + 1}c{cell % size + 1}"


def digits_seen(board: Board, cell: int) -> str:
    """The digits, ascending, that its row, column and box hold; `-` where they hold none."""
    options = candidates(shape(board.size), board.grid, cell)
    return "".join(str(digit) for digit in range(1, board.size + 1) if digit not in options) or "-"


def placement(cell: int, digit: int, size: int) -> str:
    """Such as `r1c2=3`."""
    return f"{place(cell, size)}={digit}"


def grid_text(grid: Digits, size: int) -> str:
    """A line a row, a character a cell: digits are tokens of their own, so that columns line up for a tokenizer too."""
    letters = "".join(str(digit) if digit else BLANK for digit in grid)
    return "\n".join(letters[start : start + size] for start in range(0, size * size, size))
