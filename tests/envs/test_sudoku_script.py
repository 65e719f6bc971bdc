"""Sudoku's scripted player: thoughts that follow from the grid, sketches that are plans, guesses that are legal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from configs.environments import SudokuSettings
from envs.protocol import spoken
from envs.sudoku.env import Sudoku
from envs.sudoku.grid import Board, candidates, shape
from envs.sudoku.script import SudokuScript

SCRIPT = SudokuScript()
REASON = re.compile(r"r(\d)c(\d) row([\d-]+) col([\d-]+) box([\d-]+) so(\d+)(?: try(\d))?")
SHAPES: list[dict[str, Any]] = [
    {},
    {"blanks": 12, "max_turns": 1},
    {"blanks": 11, "actions_per_turn": 3, "max_turns": 4, "max_actions": 11},
    {"actions_per_turn": 1, "max_turns": 8, "max_actions": 8},
    {"size": 9, "blanks": 30},
    {"size": 9, "blanks": 54, "max_actions": 60},
]


def sudoku(**fields: Any) -> Sudoku:
    return Sudoku(SudokuSettings.model_validate(fields))


def play(
    env: Sudoku, sketch: str | None, careful: bool, seed: int, turns: int = 99
) -> Iterator[tuple[Board, str, str]]:
    """Each turn's board, thought and answer, all of them legal."""
    answers = SCRIPT.answers(env, sketch, careful, np.random.default_rng(seed))
    for thought, answer in islice(answers, turns):
        yield env.state, thought, answer
        text, _, terminated, truncated, _ = env.step(spoken(env.settings, thought, answer))
        assert not text.startswith(("Illegal", "Unreadable"))
        if terminated or truncated:
            return


def test_a_careful_thought_by_hand() -> None:
    env = sudoku()
    env.reset(seed=0)
    givens = (1, 2, 3, 0, 3, 4, 0, 1, 2, 0, 0, 3, 4, 3, 0, 0)
    env.state = Board(4, givens, (1, 2, 3, 4, 3, 4, 2, 1, 2, 1, 4, 3, 4, 3, 1, 2), givens)
    ((_, thought, answer), *_) = play(env, "start r3c3, r2c3", True, 0)
    assert thought.startswith(
        "r3c3 row23 col3 box3 so14 try4, r2c3 row341 col3 box31 so2, r1c4 row123 col13 box31 so4, "
    )
    assert answer.startswith("r3c3=4 || r2c3=2 || r1c4=4 || ")


@pytest.mark.parametrize("fields", SHAPES)
def test_careful_play_solves_within_the_limits(fields: dict[str, Any]) -> None:
    env = sudoku(**fields)
    for seed in range(25):
        env.reset(seed=seed)
        for sketch in (None, *SCRIPT.sketches(env)[:: max(1, env.settings.size - 2)]):
            env.reset(seed=seed)
            assert list(play(env, sketch, True, seed))
            assert env.solved


@pytest.mark.parametrize("fields", SHAPES)
def test_a_thought_follows_from_the_grid_it_reads(fields: dict[str, Any]) -> None:
    env = sudoku(**fields)
    for seed in range(8):
        env.reset(seed=seed)
        sketches = SCRIPT.sketches(env)
        for board, thought, answer in play(env, sketches[seed % len(sketches)], True, seed):
            assert answer == " || ".join(checked_thought(thought, np.reshape(board.grid, (board.size, board.size))))


def checked_thought(thought: str, grid: npt.NDArray[np.int64]) -> list[str]:
    """The placements a thought comes to; `grid` is the one it starts from. Each later one it reads is written out."""
    size, placements = len(grid), []
    lines = thought.split("\n")
    for number in range(0, len(lines), size + 1):
        filled = grid.copy()
        for reason in lines[number].split(", "):
            row, column, digit = checked_reason(reason, grid)
            filled[row, column] = digit
            placements.append(f"r{row + 1}c{column + 1}={digit}")
        grid = filled
        rows = ["".join(map(str, row)) for row in grid]
        assert lines[number + 1 : number + 1 + size] in ([], rows)
    return placements


def checked_reason(reason: str, grid: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """Row and column, from 0, and digit of a reason whose digits are those of the grid."""
    match = REASON.fullmatch(reason)
    assert match is not None, reason
    row, column, side = int(match[1]) - 1, int(match[2]) - 1, round(len(grid) ** 0.5)
    box = grid[row // side * side :, column // side * side :][:side, :side]
    assert grid[row, column] == 0
    for said, cells in zip(match.group(3, 4, 5), (grid[row], grid[:, column], box.ravel()), strict=True):
        assert said == ("".join(str(digit) for digit in cells if digit) or "-")
    left = [str(digit) for digit in range(1, len(grid) + 1) if str(digit) not in "".join(match.group(3, 4, 5))]
    assert match[6] == "".join(left)
    assert (match[7] is None) == (len(left) == 1)
    assert (match[7] or match[6]) in left
    return row, column, int(match[7] or match[6])


def test_sketches_are_orders_of_blank_cells_sure_ones_first() -> None:
    for fields, least in (({}, 6), ({"blanks": 12}, 6), ({"size": 9, "blanks": 40}, 12), ({"blanks": 1}, 1)):
        env = sudoku(**{"max_actions": 40, **fields})
        for seed in range(40):
            env.reset(seed=seed)
            sketches = SCRIPT.sketches(env)
            keys = [env.sketch_key(sketch) for sketch in sketches]
            assert least <= len(set(keys)) == len(keys) <= 30
            assert all(key is not None and key.count("r") in (1, 2) for key in keys)
            first = [cell for cell in env.state.blanks if f"start {at(cell, env)}" == sketches[0].partition(",")[0]]
            assert len(candidates(shape(env.settings.size), env.state.givens, first[0])) == 1


def at(cell: int, env: Sudoku) -> str:
    return "r{}c{}".format(*(number + 1 for number in divmod(cell, env.settings.size)))


@pytest.mark.parametrize("careful", [True, False])
def test_guided_play_fills_the_cells_of_its_sketch_first(careful: bool) -> None:
    env = sudoku()
    for seed in range(10):
        env.reset(seed=seed)
        for sketch in SCRIPT.sketches(env):
            env.reset(seed=seed)
            ((_, _, answer),) = play(env, sketch, careful, seed, turns=1)
            wanted = re.findall(r"r\dc\d", sketch)
            assert re.findall(r"r\dc\d", answer)[: len(wanted)] == wanted


def test_careless_play_is_legal_and_mostly_loses() -> None:
    env, solved = sudoku(), []
    for seed in range(150):
        env.reset(seed=seed)
        turns = list(play(env, None, False, seed))
        assert all(thought == "guess" for _, thought, _ in turns)
        assert len(turns[0][2].split(" || ")) == 8
        assert all(" || " not in answer for _, _, answer in turns[1:])
        solved.append(env.solved)
    assert np.mean(solved) < 0.35
