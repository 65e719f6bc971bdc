"""Scripted play of Countdown: careful thoughts are right and lead to the answer; plans are followed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from envs.countdown.formula import numbers_of, operations_of, read_formula, value_of
from envs.countdown.puzzle import Puzzle
from envs.countdown.script import CountdownScript
from envs.trajectory import Verdict
from tests.envs.test_countdown import SMALL, countdown, puzzle, step


def trials_of(thought: str) -> list[str]:
    return thought.removesuffix(".").split("; ")


def checked(trial: str, here: Puzzle) -> tuple[str, bool]:
    """The operators of a trial and whether it says yes; its sums are right, whole, and used up as they are made."""
    sums, _, verdict = trial.rpartition(" ")
    at_hand = [str(number) for number in here.numbers]
    operators = ""
    for each in sums.split(", "):
        found = re.fullmatch(r"(\d+(?: \d+)+): (\d+)([-+*/])(\d+)=(\d+)", each)
        assert found, each
        written, left, operator, right, value = found.groups()
        assert written.split() == at_hand
        assert value_of(read_formula(f"{left}{operator}{right}")) == int(value)
        at_hand.remove(left)
        at_hand.remove(right)
        at_hand.insert(0, value)
        operators += operator
    (last,) = at_hand
    assert (int(last) == here.target) == (verdict == "yes")
    assert verdict in ("yes", "no")
    return operators, verdict == "yes"


@pytest.mark.parametrize("fields", [SMALL, {}, {"least_numbers": 5, "most_numbers": 6, "largest_number": 20}])
def test_careful_thoughts_are_right_sums_that_lead_to_the_answer(fields: dict[str, int]) -> None:
    game, script, rng = countdown(**fields), CountdownScript(), np.random.default_rng(0)
    misses = []
    for seed in range(150):
        game.reset(seed=seed)
        sketches = script.sketches(game)
        sketch = sketches[rng.integers(len(sketches))] if seed % 2 else None
        thought, answer = next(script.answers(game, sketch, True, rng))
        trials = [checked(trial, game.state.puzzle) for trial in trials_of(thought)]
        assert [yes for _, yes in trials] == [False] * (len(trials) - 1) + [True]
        assert "".join(o.operator for o in operations_of(read_formula(answer))) == trials[-1][0]
        if sketch is not None:
            assert {operators for operators, _ in trials} == {game.sketch_key(sketch)}
        assert step(game, answer)[3] is Verdict.SOLVED
        misses.append(len(trials) - 1)
    assert set(misses) == {0, 1, 2}


def test_careless_play_names_a_formula_and_mostly_loses() -> None:
    game, script, rng = countdown(**SMALL), CountdownScript(), np.random.default_rng(0)
    wins: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(400):
        game.reset(seed=seed)
        sketch = script.sketches(game)[0] if seed % 2 else None
        thought, answer = next(script.answers(game, sketch, False, rng))
        assert thought == f"{answer}."
        if sketch is not None:
            operators = [operation.operator for operation in operations_of(read_formula(answer))]
            assert "".join(operators) == game.sketch_key(sketch)
        wins[sketch is not None].append(step(game, answer)[3] is Verdict.SOLVED)
    assert np.mean(wins[False]) < 0.1
    # A plan that works is half the way.
    assert np.mean(wins[True]) < 0.5


def test_sketches_are_the_plans_that_work_and_a_puzzle_without_any_is_played_all_the_same() -> None:
    script, rng = CountdownScript(), np.random.default_rng(0)
    # 3 * 7 + 2 and nothing else
    assert script.sketches(puzzle((3, 7, 2), 23)) == ["plan * then +"]
    hopeless = puzzle((1, 1, 2), 5)
    assert script.sketches(hopeless) == []
    _, answer = next(script.answers(hopeless, None, True, rng))
    assert sorted(numbers_of(read_formula(answer))) == [1, 1, 2]
    # A plan that cannot reach the target is followed too.
    _, answer = next(script.answers(puzzle((3, 7, 2), 23), "plan - then /", True, rng))
    assert "".join(o.operator for o in operations_of(read_formula(answer))) == "-/"
