"""The grid itself: cells, the units that hold each digit once, and a puzzle in play. Knows no text and no turns.

Cells are numbered row by row from 0; a grid is its digits in that order, 0 where it is blank. A set of digits is a bit
mask: bit d stands for digit d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isqrt

Digits = tuple[int, ...]
KINDS = ("row", "column", "box")


@dataclass(frozen=True, slots=True)
class Shape:
    """What all grids of a size share.

    `units`: cells of each row, then of each column, then of each box. `units_of`: numbers of the row, the column and
    the box of each cell. `full`: the mask of all digits.
    """

    size: int
    units: tuple[tuple[int, ...], ...]
    units_of: tuple[tuple[int, int, int], ...]
    full: int


@cache
def shape(size: int) -> Shape:
    """Shape of a grid of `size` rows; `size` is a square number, boxes have its root as their side."""
    box = isqrt(size)
    spots = [divmod(cell, size) for cell in range(size * size)]
    units_of = tuple((row, size + column, 2 * size + row // box * box + column // box) for row, column in spots)
    units = tuple(tuple(cell for cell, numbers in enumerate(units_of) if unit in numbers) for unit in range(3 * size))
    return Shape(size, units, units_of, (1 << size + 1) - 2)


def used_digits(form: Shape, grid: Sequence[int]) -> list[int]:
    """(3 size,) the mask of the digits that stand in each unit."""
    masks = [0] * len(form.units)
    for cell, digit in enumerate(grid):
        if digit:
            for unit in form.units_of[cell]:
                masks[unit] |= 1 << digit
    return masks


def candidates(form: Shape, grid: Sequence[int], cell: int) -> list[int]:
    """Digits, ascending, that stand nowhere else in the row, the column and the box of a cell."""
    seen = {grid[other] for unit in form.units_of[cell] for other in form.units[unit] if other != cell}
    return [digit for digit in range(1, form.size + 1) if digit not in seen]


@dataclass(frozen=True, slots=True)
class Board:
    """A puzzle in play: what was given, its one solution, and the grid as it stands."""

    size: int
    givens: Digits
    solution: Digits
    grid: Digits

    @property
    def blanks(self) -> list[int]:
        """Cells that are not given, filled or not."""
        return [cell for cell, digit in enumerate(self.givens) if not digit]

    @property
    def empty(self) -> list[int]:
        """Cells that hold no digit."""
        return [cell for cell, digit in enumerate(self.grid) if not digit]

    @property
    def unsolved(self) -> list[int]:
        """Cells that do not hold their right digit."""
        return [cell for cell, digit in enumerate(self.grid) if digit != self.solution[cell]]

    @property
    def contradicts_itself(self) -> bool:
        """Whether some own digit shows to be wrong: a cell holds a digit it sees, or is empty and sees them all."""
        for cell in self.blanks:
            left = candidates(shape(self.size), self.grid, cell)
            if not left or (self.grid[cell] and self.grid[cell] not in left):
                return True
        return False

    def clash(self, cell: int, digit: int) -> str | None:
        """Such as `row 1`: where the digit is given already, row before column before box; None if nowhere."""
        form = shape(self.size)
        for kind, unit in zip(KINDS, form.units_of[cell], strict=True):
            if any(self.givens[other] == digit for other in form.units[unit]):
                return f"{kind} {unit % self.size + 1}"
        return None

    def legal(self, cell: int) -> list[int]:
        """Digits, ascending, that clash with no given: those a blank cell may hold."""
        return candidates(shape(self.size), self.givens, cell)

    def placed(self, cell: int, digit: int) -> Board:
        """The board with a digit in a cell, whatever was there."""
        return replace(self, grid=(*self.grid[:cell], digit, *self.grid[cell + 1 :]))
