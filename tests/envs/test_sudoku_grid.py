"""Sudoku's search and its puzzles: counted against brute force, rated against a naive reader."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.sudoku.generator import Difficulty, draw_puzzle, full_grid
from envs.sudoku.grid import Board, Digits, candidates, shape
from envs.sudoku.solver import count_solutions, filled_by_singles, may_blank, rating, solutions
from tests.envs.reference import reasoning_gym

ALL_4 = list(solutions(4, (0,) * 16))
# Of the two kinds of 4x4 grids that no renaming and swapping of rows or columns turns into each other, one each.
KINDS_4 = (ALL_4[0], ALL_4[1])


def read(rows: str) -> Digits:
    """A grid written out, rows separated by `/`."""
    return tuple(0 if letter == "." else int(letter) for letter in rows if letter not in " /")


def with_givens(solution: Digits, mask: int) -> Digits:
    return tuple(digit if mask >> cell & 1 else 0 for cell, digit in enumerate(solution))


def is_right(grid: Digits, size: int) -> bool:
    return all({grid[cell] for cell in unit} == set(range(1, size + 1)) for unit in shape(size).units)


def naive_candidates(grid: list[int], size: int, cell: int) -> set[int]:
    side = round(size**0.5)
    row, column = divmod(cell, size)
    left = set(range(1, size + 1))
    for other, digit in enumerate(grid):
        r, c = divmod(other, size)
        if r == row or c == column or (r // side, c // side) == (row // side, column // side):
            left.discard(digit)
    return left


def naive_rating(givens: Digits, size: int) -> str:
    """By sets, one cell at a time, hidden places found by trying every unit and digit."""
    grid, worst = list(givens), "easy"
    while 0 in grid:
        options = {cell: naive_candidates(grid, size, cell) for cell, digit in enumerate(grid) if not digit}
        found = [(cell, digits) for cell, digits in options.items() if len(digits) == 1]
        if not found:
            worst = "medium"
            for unit, digit in product(shape(size).units, range(1, size + 1)):
                places = [cell for cell in unit if digit in options.get(cell, ())]
                found += [(places[0], {digit})] if len(places) == 1 else []
        if not found:
            return "hard"
        grid[found[0][0]] = min(found[0][1])
    return worst


def test_units_of_both_sizes() -> None:
    form = shape(4)
    assert form.units[:4] == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))
    assert form.units[4] == (0, 4, 8, 12)
    assert form.units[8:] == ((0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15))
    assert form.full == 0b11110
    assert shape(9).units[9 + 9 + 4] == (30, 31, 32, 39, 40, 41, 48, 49, 50)
    assert all(len(unit) == 9 for unit in shape(9).units)
    assert shape(9).units_of[80] == (8, 17, 26)


def test_there_are_288_grids_of_size_4() -> None:
    assert len(set(ALL_4)) == len(ALL_4) == 288
    assert all(is_right(grid, 4) for grid in ALL_4)


@given(st.integers(0, 287), st.integers(0, 2**16 - 1))
def test_solutions_are_those_that_brute_force_finds(number: int, mask: int) -> None:
    grid = with_givens(ALL_4[number], mask)
    fitting = {full for full in ALL_4 if all(d in (0, f) for d, f in zip(grid, full, strict=True))}
    assert set(solutions(4, grid)) == fitting
    assert count_solutions(4, grid) == min(2, len(fitting))
    assert count_solutions(4, grid, 1000) == len(fitting)


@given(st.integers(0, 287), st.integers(0, 2**16 - 1), st.integers(0, 15))
def test_a_cell_may_be_blanked_if_the_solution_stays_the_only_one(number: int, mask: int, cell: int) -> None:
    grid = with_givens(ALL_4[number], mask | 1 << cell)
    if count_solutions(4, grid) == 1:
        assert may_blank(4, grid, cell) == (count_solutions(4, with_givens(grid, ~(1 << cell))) == 1)


def test_a_grid_without_a_way_on_has_no_solution() -> None:
    assert list(solutions(4, read("123./...4/..../...."))) == []
    assert list(solutions(4, ALL_4[7])) == [ALL_4[7]]


def test_counts_agree_with_reasoning_gym() -> None:
    sudoku = reasoning_gym("games.sudoku")
    theirs = sudoku.SudokuDataset(sudoku.SudokuConfig())
    for seed in range(8):
        board = drawn(9, 48, "any", seed)
        for cells in ([], [np.flatnonzero(board.givens)[seed]], np.flatnonzero(board.givens)[::3]):
            grid = np.array(board.givens)
            grid[cells] = 0
            rows = grid.reshape(9, 9).tolist()
            # Theirs may count past two.
            assert count_solutions(9, grid.tolist()) == min(2, theirs._count_solutions(rows))


@pytest.mark.parametrize(("solution", "puzzles"), zip(KINDS_4, (50027, 41401), strict=True))
def test_every_puzzle_of_size_4_with_one_solution_is_easy(solution: Digits, puzzles: int) -> None:
    same = [sum(1 << cell for cell in range(16) if full[cell] == solution[cell]) for full in ALL_4 if full != solution]
    unique = [mask for mask in range(1 << 16) if not any(mask & others == mask for others in same)]
    assert len(unique) == puzzles
    assert all(rating(4, with_givens(solution, mask)) == "easy" for mask in unique)


def test_naked_singles_by_hand() -> None:
    # r1c4 lacks 4 only; what is left of row 2 and box 2 could go both ways.
    assert filled_by_singles(4, read("123./34../..../...."), hidden=False) == read("1234/34../..../....")
    # Here r2c3 sees 3, 4, 1; r4c1 sees 1, 3, 2; r3c4 sees 4, 1, 2; the rest follows.
    assert filled_by_singles(4, read("123./34.1/2.../...."), hidden=False) == read("1234/3421/2143/4312")


def test_hidden_singles_by_hand() -> None:
    # 1 stands in row 2, row 3, column 2 and column 4: box 1 takes it in r1c1 only, and box 4 in r4c3 only.
    grid = read("..../...1/.1../....")
    assert filled_by_singles(4, grid, hidden=False) == grid
    assert filled_by_singles(4, grid, hidden=True) == read("1.../...1/.1../..1.")


@pytest.mark.parametrize(("difficulty", "blanks"), [("easy", 50), ("medium", 53), ("hard", 54), ("any", 53)])
def test_ratings_are_those_of_a_naive_reader(difficulty: Difficulty, blanks: int) -> None:
    for seed in range(6):
        board = drawn(9, blanks, difficulty, seed)
        assert rating(9, board.givens) == naive_rating(board.givens, 9)
        assert difficulty in ("any", naive_rating(board.givens, 9))


def drawn(size: int, blanks: int, difficulty: Difficulty, seed: int) -> Board:
    rng = np.random.default_rng(seed)
    return next(b for _ in range(300) if (b := draw_puzzle(size, blanks, difficulty, rng)) is not None)


@pytest.mark.parametrize(
    ("size", "blanks", "difficulty"),
    [(4, 1, "any"), (4, 8, "easy"), (4, 12, "any"), (9, 1, "easy"), (9, 40, "any"), (9, 55, "any"), (9, 50, "medium")],
)
def test_a_drawn_puzzle_has_one_solution_and_the_blanks_asked_for(
    size: int, blanks: int, difficulty: Difficulty
) -> None:
    for seed in range(10):
        board = drawn(size, blanks, difficulty, seed)
        assert board.grid == board.givens
        assert len(board.blanks) == len(board.empty) == len(board.unsolved) == blanks
        assert list(solutions(size, board.givens)) == [board.solution]
        assert is_right(board.solution, size)
        assert all(given in (0, digit) for given, digit in zip(board.givens, board.solution, strict=True))
        assert board == drawn(size, blanks, difficulty, seed)


def test_every_grid_of_size_4_comes_up() -> None:
    rng = np.random.default_rng(0)
    assert len({full_grid(4, rng) for _ in range(4000)}) == 288


def test_grids_of_size_9_differ() -> None:
    rng = np.random.default_rng(0)
    grids = {full_grid(9, rng) for _ in range(40)}
    assert len(grids) == 40
    assert all(is_right(grid, 9) for grid in grids)


@pytest.mark.parametrize(("size", "blanks", "difficulty"), [(4, 12, "hard"), (9, 20, "medium"), (9, 64, "any")])
def test_what_cannot_be_had_is_none(size: int, blanks: int, difficulty: Difficulty) -> None:
    rng = np.random.default_rng(1)
    assert all(draw_puzzle(size, blanks, difficulty, rng) is None for _ in range(5))


def test_candidates_leave_out_what_row_column_and_box_hold() -> None:
    grid = read(".2../..4./..../3...")
    assert candidates(shape(4), grid, 0) == [1, 4]
    # What a cell itself holds counts for nothing.
    assert candidates(shape(4), grid, 1) == [1, 2, 3, 4]


def test_a_board_tells_which_given_forbids_a_digit() -> None:
    board = Board(4, read("12../..../2.../...."), ALL_4[0], read("12../..3./2.../...."))
    assert board.clash(2, 1) == "row 1"
    assert board.clash(9, 2) == "row 3"
    assert board.clash(13, 2) == "column 2"
    assert board.clash(5, 1) == "box 1"
    # Own digits forbid none.
    assert board.clash(3, 3) is None
    assert board.legal(5) == [3, 4]
    assert board.placed(3, 4).grid == read("12.4/..3./2.../....")


@pytest.mark.parametrize(
    ("grid", "wrong"),
    [
        ("12../..../2.../....", False),
        ("123./..../2.../....", False),
        ("12.3/..../2..1/...2", False),
        # An own digit that stands twice in its row, its column, its box; next to a given one; no digit left for r1c3.
        ("12../3..3/2.../....", True),
        ("12../3.../2.../3...", True),
        ("12../.3../2.../....", False),
        ("12../33../2.../....", True),
        ("12../..../2..2/....", True),
        ("12.4/..3./2.../....", True),
    ],
)
def test_a_board_contradicts_itself_where_an_own_digit_shows_to_be_wrong(grid: str, wrong: bool) -> None:
    givens = read("12../..../2.../....")
    assert Board(4, givens, ALL_4[0], read(grid)).contradicts_itself == wrong
