"""Sudoku: ceilings and oracles against brute force, scores against an independent scorer, settings without a puzzle."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.environments import SudokuSettings
from envs.base import BadEnvironment
from envs.sudoku.env import Sudoku
from envs.sudoku.grid import Board, Digits
from tests.envs.reference import reasoning_gym


def sudoku(**fields: Any) -> Sudoku:
    return Sudoku(SudokuSettings.model_validate({"blanks": 9, **fields}))


def say(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


def legal_moves(board: Board) -> Iterator[Board]:
    for cell in board.blanks:
        for digit in range(1, 5):
            if board.clash(cell, digit) is None:
                yield board.placed(cell, digit)


def distances(board: Board) -> dict[Digits, int]:
    """Fewest placements to the solution from every grid that can be reached, by search backwards over all moves."""
    grids, frontier = {board.grid: board}, deque([board])
    before: dict[Digits, set[Digits]] = {}
    while frontier:
        here = frontier.popleft()
        for there in legal_moves(here):
            before.setdefault(there.grid, set()).add(here.grid)
            if there.grid not in grids:
                grids[there.grid] = there
                frontier.append(there)
    found, queue = {board.solution: 0}, deque([board.solution])
    while queue:
        grid = queue.popleft()
        for earlier in before.get(grid, set()) - found.keys():
            found[earlier] = found[grid] + 1
            queue.append(earlier)
    assert found.keys() == grids.keys(), "from everywhere there is a way"
    return found


@pytest.mark.parametrize("seed", range(4))
def test_ceiling_and_length_are_exact_from_every_grid_that_can_be_reached(seed: int) -> None:
    made = sudoku(blanks=8, actions_per_turn=2, max_turns=5, max_actions=9)
    made.reset(seed=seed)
    fewest = distances(made.state)
    assert len(fewest) > 300
    assert set(fewest.values()) == set(range(9))
    for grid, steps in fewest.items():
        made.state = replace(made.state, grid=grid)
        assert made.optimal_length() == steps
        for turns, done in ((0, 0), (1, 2), (2, 3), (3, 6), (4, 8), (5, 8)):
            made.turns, made.done = turns, ["r1c1=1"] * done
            assert made.ceiling() == float(steps <= min((5 - turns) * 2, 9 - done))


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_the_oracle_solves_after_any_legal_play_iff_the_ceiling_says_so(seed: int, width: int) -> None:
    made = sudoku(blanks=6, actions_per_turn=width, max_turns=8, max_actions=12)
    made.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(0, 4)):
        made.step(say(made.random_answer(rng)))
    hope = made.ceiling()
    assert (made.oracle() is None) == (hope == 0 or made.solved)
    while not made.solved and (answer := made.oracle()) is not None:
        assert not made.step(say(answer))[0].startswith("Illegal")
        assert made.ceiling() == hope
    assert made.solved == bool(hope)
    assert made.solved == (made.optimal_length() == 0)


@pytest.mark.parametrize("fields", [{}, {"blanks": 12}, {"actions_per_turn": 1, "max_turns": 20}, {"size": 9}])
def test_random_answers_are_legal(fields: dict[str, Any]) -> None:
    made = sudoku(**fields)
    for seed in range(30):
        made.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(4):
            text, _, terminated, truncated, _ = made.step(say(made.random_answer(rng)))
            assert not text.startswith(("Illegal", "Unreadable"))
            if terminated or truncated:
                break


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 9, "blanks": 64, "max_actions": 80}, "env.blanks 64 with env.size 9 and env.difficulty any: none of"),
        ({"difficulty": "hard"}, "env.difficulty hard: none of 200 grids .* use difficulty any or easy$"),
        ({"size": 9, "blanks": 20, "difficulty": "medium"}, "use 50 to 56 blanks, or difficulty any$"),
        ({"size": 9, "blanks": 60, "difficulty": "easy", "max_actions": 80}, "one solution: use fewer blanks$"),
    ],
)
def test_settings_without_a_puzzle_are_told_in_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadEnvironment, match=words) as caught:
        sudoku(**fields).reset(seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blanks": 13}, r"blanks \(13\) must be at most 12 with size 4"),
        ({"blanks": 9, "max_actions": 8}, r"max_actions \(8\)"),
        ({"size": 6}, "size"),
        ({"partial_credit": 1.0}, "partial_credit"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        sudoku(**fields)


@pytest.mark.parametrize(("size", "module", "scorer"), [
    (4, "games.mini_sudoku", "MiniSudoku"), (9, "games.sudoku", "Sudoku"),
])  # fmt: skip
def test_solved_is_what_reasoning_gym_gives_full_score(size: int, module: str, scorer: str) -> None:
    theirs = reasoning_gym(module)
    judge = getattr(theirs, f"{scorer}Dataset")(getattr(theirs, f"{scorer}Config")())
    made = sudoku(size=size, blanks=10)
    for seed in range(25):
        made.reset(seed=seed)
        rows = np.reshape(made.state.solution, (size, size)).tolist()
        entry = {"answer": judge._board_to_string(rows), "metadata": {"solution": rows}}
        rng = np.random.default_rng(seed)
        for play in (made.oracle() or "", made.random_answer(rng), made.random_answer(rng)):
            made.reset(seed=seed)
            made.step(say(play))
            score = judge.score_answer("\n".join(map(" ".join, made.render().split("\n"))), entry)
            assert (score == 1.0) == made.solved
            if not made.state.empty and not made.solved:
                right = size * size - len(made.state.unsolved)
                assert score == pytest.approx(0.9 * right / size**2)
