"""Exact search for solutions, and how hard a puzzle is for a reader who does not guess."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from envs.sudoku.grid import Digits, Shape, shape, used_digits

Rating = Literal["easy", "medium", "hard"]


class _Fill:
    """A grid that is being filled, with the digits used in each unit kept up to date."""

    def __init__(self, form: Shape, grid: Sequence[int]) -> None:
        self.form = form
        self.digits = list(grid)
        self.used = used_digits(form, grid)
        self.blank = [cell for cell, digit in enumerate(grid) if not digit]

    def free(self, cell: int) -> int:
        """Mask of the candidates of a blank cell."""
        row, column, box = self.form.units_of[cell]
        return self.form.full & ~(self.used[row] | self.used[column] | self.used[box])

    def place(self, cell: int, digit: int) -> None:
        self.digits[cell] = digit
        self._mark(cell, 1 << digit)

    def take_back(self, cell: int) -> None:
        self._mark(cell, 1 << self.digits[cell])
        self.digits[cell] = 0

    def _mark(self, cell: int, mask: int) -> None:
        row, column, box = self.form.units_of[cell]
        self.used[row] ^= mask
        self.used[column] ^= mask
        self.used[box] ^= mask

    def tightest(self) -> tuple[int, int]:
        """Place in `blank` and candidates of the blank cell with the fewest; the first of equals."""
        used, full, units_of = self.used, self.form.full, self.form.units_of
        fewest, best = 99, (0, 0)
        for place, cell in enumerate(self.blank):
            row, column, box = units_of[cell]
            free = full & ~(used[row] | used[column] | used[box])
            count = free.bit_count()
            if count < fewest:
                fewest, best = count, (place, free)
                if count < 2:
                    break
        return best

    def complete(self, orders: Sequence[Sequence[int]]) -> Iterator[Digits]:
        """Every way to fill the blanks, digits of a cell tried in the order `orders` has for it."""
        if not self.blank:
            yield tuple(self.digits)
            return
        place, free = self.tightest()
        cell, self.blank[place] = self.blank[place], self.blank[-1]
        self.blank.pop()
        for digit in orders[cell]:
            if free >> digit & 1:
                self.place(cell, digit)
                yield from self.complete(orders)
                self.take_back(cell)
        self.blank.append(cell)
        self.blank[place], self.blank[-1] = cell, self.blank[place]


def solutions(size: int, grid: Sequence[int], orders: Sequence[Sequence[int]] | None = None) -> Iterator[Digits]:
    """All solutions of a grid without clashes, by search in the cell with the fewest candidates.

    `orders`: (size * size, size) the order in which each cell's digits are tried; ascending if None.
    """
    ascending = [range(1, size + 1)] * (size * size)
    yield from _Fill(shape(size), grid).complete(orders or ascending)


def count_solutions(size: int, grid: Sequence[int], most: int = 2) -> int:
    """Number of solutions, counted up to `most`."""
    return sum(1 for _ in islice(solutions(size, grid), most))


def may_blank(size: int, grid: Sequence[int], cell: int) -> bool:
    """Whether a grid with one solution still has one when a filled cell is blanked: no other digit there has any."""
    fill = _Fill(shape(size), grid)
    digit = fill.digits[cell]
    fill.take_back(cell)
    others = fill.free(cell) & ~(1 << digit)
    blanked = list(grid)
    for other in range(1, size + 1):
        if others >> other & 1:
            blanked[cell] = other
            if count_solutions(size, blanked, 1):
                return False
    return True


def filled_by_singles(size: int, grid: Sequence[int], hidden: bool) -> Digits:
    """The grid after all that follows without a guess.

    Naked singles, cells with one candidate, always count; with `hidden` also digits with one place in some unit.
    """
    fill = _Fill(shape(size), grid)
    while _fill_naked(fill) or (hidden and _fill_hidden(fill)):
        pass
    return tuple(fill.digits)


def _fill_naked(fill: _Fill) -> bool:
    """Fill cells with one candidate in one pass over the blanks; whether there were any."""
    left = []
    for cell in fill.blank:
        free = fill.free(cell)
        if free.bit_count() == 1:
            fill.place(cell, free.bit_length() - 1)
        else:
            left.append(cell)
    found = len(left) < len(fill.blank)
    fill.blank = left
    return found


def _fill_hidden(fill: _Fill) -> bool:
    """Fill one cell with a digit that has no other place in a unit; whether there was any."""
    for unit in fill.form.units:
        places = [(cell, fill.free(cell)) for cell in unit if not fill.digits[cell]]
        once = twice = 0
        for _, free in places:
            twice |= once & free
            once |= free
        once &= ~twice
        for cell, free in places:
            if free & once:
                fill.place(cell, (free & once).bit_length() - 1)
                fill.blank.remove(cell)
                return True
    return False


def rating(size: int, grid: Sequence[int]) -> Rating:
    """How hard a puzzle with one solution is: what kind of steps fill it without a guess."""
    if all(filled_by_singles(size, grid, hidden=False)):
        return "easy"
    return "medium" if all(filled_by_singles(size, grid, hidden=True)) else "hard"
