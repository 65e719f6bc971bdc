"""Countdown: rewards, texts, tries, sketches; right and wrong as an independent scorer has them."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environments import CountdownSettings
from envs.base import BadEnvironment
from envs.countdown.env import Countdown, Game, judged, plan_text, random_formula
from envs.countdown.formula import numbers_of, read_formula, value_of, written
from envs.countdown.puzzle import Puzzle
from envs.countdown.script import ways
from envs.trajectory import Verdict
from tests.envs.reference import reasoning_gym

TRIES = {"max_turns": 4, "max_actions": 4}
SMALL = {"least_numbers": 3, "most_numbers": 3, "largest_number": 10, "largest_target": 50}


def countdown(**fields: Any) -> Countdown:
    return Countdown(CountdownSettings.model_validate(fields))


def puzzle(numbers: tuple[int, ...], target: int, **fields: Any) -> Countdown:
    game = countdown(**fields)
    game.reset(seed=0)
    game.state = Game(Puzzle(numbers, target))
    return game


def say(formula: str) -> str:
    return f"<think>so</think><answer>{formula}</answer>"


def step(game: Countdown, formula: str) -> tuple[str, float, bool, Verdict]:
    """Text, reward, whether it is over, verdict."""
    text, reward, terminated, truncated, info = game.step(say(formula))
    return text, reward, terminated or truncated, info["outcome"].verdict


# --- rewards and texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "text", "reward", "verdict"),
    [
        ("3*7+2", "Solved.", 1.0, Verdict.SOLVED),
        ("2 + (7×3) = 5", "Solved.", 1.0, Verdict.SOLVED),
        ("-(2-25)", "Wrong numbers: 3 7 missing, 25 too many. It is over.", 0.0, Verdict.WRONG),
        ("3+7*2 = 23", "That is 17, not 23. It is over.", 0.1, Verdict.WRONG),
        ("3-7*2", "That is -11, not 23. It is over.", 0.1, Verdict.WRONG),
        ("7/2+3", "That is 13/2, not 23. It is over.", 0.1, Verdict.WRONG),
        ("23", "Wrong numbers: 2 3 7 missing, 23 too many. It is over.", 0.0, Verdict.WRONG),
        ("21+2", "Wrong numbers: 3 7 missing, 21 too many. It is over.", 0.0, Verdict.WRONG),
        ("7*3", "Wrong numbers: 2 missing. It is over.", 0.0, Verdict.WRONG),
        ("7*3+2+2-2", "Wrong numbers: 2 2 too many. It is over.", 0.0, Verdict.WRONG),
        ("7*3+*2", "Illegal action 7*3+*2: a number is missing.\nIt is over.", -0.1, Verdict.UNPARSABLE),
    ],
)
def test_one_answer(formula: str, text: str, reward: float, verdict: Verdict) -> None:
    assert step(puzzle((3, 7, 2), 23), formula) == (text, reward, True, verdict)


def test_division_by_zero_has_the_right_numbers_and_no_value() -> None:
    game = puzzle((3, 3, 5), 23)
    assert step(game, "5/(3-3)") == ("That divides by zero. It is over.", 0.1, True, Verdict.WRONG)
    # Whose value is nowhere needed: the numbers are wrong.
    assert step(puzzle((3, 3, 5), 23), "1/0")[0].startswith("Wrong numbers")


def test_hundreds_of_wrong_numbers_are_not_all_told() -> None:
    text, reward, *_ = step(puzzle((3, 7, 2), 23), "1" + "+1" * 190)
    assert text == "Wrong numbers: 2 3 7 missing, 1 1 1 1 1 1 too many. It is over."
    assert reward == 0


def test_the_messages() -> None:
    game = countdown()
    assert game.rules == (
        "Reach the target with a formula of + - * / and brackets that uses each number once. "
        "Reply <think>...</think><answer>(1+2)*3</answer>."
    )
    first, _ = game.reset(seed=1)
    assert re.fullmatch(r"Target \d+ from \d+( \d+){2,3}", first)
    assert game.render() == first
    first, _ = countdown(**TRIES).reset(seed=1)
    assert re.fullmatch(r"Target \d+ from \d+( \d+){2,3}\n4 turns left\.", first)


def test_a_wrong_formula_is_told_and_may_be_mended() -> None:
    game = puzzle((3, 7, 2), 23, **TRIES)
    assert step(game, "3+7*2") == ("That is 17, not 23.\n3 turns left.", 0.0, False, Verdict.WRONG)
    # What could not be read changed nothing, and the formula before it has been told.
    assert step(game, "(") == ("Illegal action (: a number is missing.\n2 turns left.", -0.1, False, Verdict.WRONG)
    assert step(game, "3*7") == ("Wrong numbers: 2 missing.\n1 turn left.", 0.0, False, Verdict.WRONG)
    assert step(game, "3*7+2") == ("Solved.", 1.0, True, Verdict.SOLVED)
    assert step(game, "3*7+2")[0] == "It is over."


def test_the_right_numbers_earn_once_and_at_the_end() -> None:
    game = puzzle((3, 7, 2), 23, **TRIES)
    rewards = [step(game, formula)[1] for formula in ("3+7*2", "3+7+2", "3-7-2", "7")]
    assert rewards == [0.0, 0.0, 0.0, 0.1]
    solved = puzzle((3, 7, 2), 23, **TRIES, right_numbers_reward=0.5)
    assert [step(solved, formula)[1] for formula in ("3+7*2", "3*7+2")] == [0.0, 1.0]
    mute = puzzle((3, 7, 2), 23, **TRIES)
    steps = [step(mute, "what") for _ in range(4)]
    assert sum(reward for _, reward, _, _ in steps) == pytest.approx(-0.4)
    assert steps[-1][3] is Verdict.UNPARSABLE


def test_a_game_of_one_answer_is_decided_by_it_and_more_tries_are_a_limit() -> None:
    assert puzzle((3, 7, 2), 23).step(say("3+7+2"))[2:4] == (True, False)
    game = puzzle((3, 7, 2), 23, max_turns=2, max_actions=2)
    assert game.step(say("3+7+2"))[2:4] == (False, False)
    assert game.step(say("3+7+2"))[2:4] == (False, True)


def test_the_answer_is_the_last_formula_in_canonical_form() -> None:
    found = []
    for tries in (["3*7+2"], ["3+7+2", "2+(7*3)=23"], ["what", "7*3--2"]):
        game = puzzle((3, 7, 2), 23, **TRIES)
        outcomes = [game.step(say(formula))[4]["outcome"] for formula in tries]
        found.append(outcomes[-1].answer)
        assert outcomes[-1].verdict is Verdict.SOLVED
    assert set(found) == {"2+3*7"}
    game = puzzle((3, 7, 2), 23, **TRIES)
    assert game.step("?")[4]["outcome"].answer == ""


# --- an independent scorer -------------------------------------------------------------------------------------------


def test_right_and_wrong_are_those_of_reasoning_gym() -> None:
    scorer = reasoning_gym("games.countdown").CountdownDataset.score_answer
    game = countdown(most_numbers=5, largest_number=12)
    rng = np.random.default_rng(0)
    rights = 0
    for seed in range(120):
        game.reset(seed=seed)
        here = game.state.puzzle
        entry = {"metadata": {"numbers": list(here.numbers), "target": here.target}}
        oracle = game.oracle()
        assert oracle is not None
        guess = random_formula(here.numbers, rng)
        foreign = random_formula((*here.numbers[:-1], int(rng.integers(1, 99))), rng)
        for text in (oracle, written(guess), written(foreign), f"({oracle})*1", f"-({written(guess)})", oracle[:-1]):
            game.reset(seed=seed)
            _, reward, _, verdict = step(game, text)
            score = scorer(None, text, entry)
            right = verdict is Verdict.SOLVED
            rights += right
            # It compares floats, to within a hundred thousandth: fractions of small numbers are not that close.
            assert right == (score == 1.0), f"{text} of {here}: {reward} and {score}"
            assert (reward == 1.0) == right
    assert 120 <= rights < 360


def test_random_formulas_use_each_number_once_and_are_judged_by_their_value() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        numbers = tuple(int(n) for n in rng.integers(1, 10, size=rng.integers(3, 7)))
        formula = random_formula(numbers, rng)
        assert sorted(numbers_of(formula)) == sorted(numbers)
        assert read_formula(written(formula)) == formula
        told, right_numbers, solved = judged(Puzzle(numbers, 24), formula)
        assert right_numbers
        try:
            assert solved == (value_of(formula) == 24)
        except ZeroDivisionError:
            assert told == "That divides by zero."


# --- puzzles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        SMALL,
        {"least_numbers": 5, "most_numbers": 6, "largest_number": 20, "largest_target": 999},
        {"largest_number": 2, "largest_target": 1},
        {"least_numbers": 3, "most_numbers": 3, "largest_number": 2, "largest_target": 1},
    ],
)
def test_every_puzzle_keeps_to_the_settings_and_can_be_solved_by_whole_numbers(fields: dict[str, int]) -> None:
    game = countdown(**fields)
    counts = set()
    for seed in range(60):
        game.reset(seed=seed)
        here, settings = game.state.puzzle, game.settings
        counts.add(len(here.numbers))
        assert all(1 <= number <= settings.largest_number for number in here.numbers)
        assert 1 <= here.target <= settings.largest_target
        assert here.target not in here.numbers
        assert ways(game)
        assert (game.ceiling(), game.optimal_length()) == (1.0, 1)
    assert counts == set(range(game.settings.least_numbers, game.settings.most_numbers + 1))


def test_all_numbers_and_all_operators_occur() -> None:
    game = countdown(**SMALL)
    numbers: set[int] = set()
    targets: set[int] = set()
    operators: set[str] = set()
    for seed in range(600):
        game.reset(seed=seed)
        numbers.update(game.state.puzzle.numbers)
        targets.add(game.state.puzzle.target)
        operators.update(next(iter(ways(game))))
    assert numbers == set(range(1, 11))
    assert len(targets) > 45
    assert operators == set("+-*/")


def test_settings_without_a_puzzle_are_refused_in_one_line_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few draws: of the usual number some succeed with these settings.
    monkeypatch.setattr("envs.countdown.env.MOST_DRAWS", 50)
    game = countdown(least_numbers=6, most_numbers=6, largest_number=999, largest_target=1)
    with pytest.raises(BadEnvironment) as refusal:
        game.reset(seed=0)
    assert "\n" not in str(refusal.value)
    for key in ("largest_target 1", "largest_number 999", "least_numbers", "most_numbers"):
        assert f"env.{key}" in str(refusal.value)


def test_episodes_are_drawn_fast() -> None:
    game = countdown()
    game.reset(seed=0)
    began = time.process_time()
    for seed in range(2000):
        game.reset(seed=seed)
    assert 2000 / (time.process_time() - began) > 2000


# --- how well it can be played ---------------------------------------------------------------------------------------


def test_a_puzzle_without_a_solution_has_no_hope() -> None:
    game = puzzle((1, 1, 2), 5)
    assert (game.ceiling(), game.oracle(), game.optimal_length()) == (0.0, None, None)


def test_hope_ends_with_the_last_turn() -> None:
    game = puzzle((3, 7, 2), 23, max_turns=2, max_actions=2)
    step(game, "3+7+2")
    assert (game.ceiling(), game.optimal_length()) == (1.0, 1)
    step(game, "3+7+2")
    assert (game.ceiling(), game.oracle()) == (0.0, None)
    solved = puzzle((3, 7, 2), 23, **TRIES)
    step(solved, "3*7+2")
    assert (solved.ceiling(), solved.optimal_length()) == (1.0, 0)


def test_the_oracle_finds_the_solution_that_needs_fractions() -> None:
    game = puzzle((3, 3, 8, 8), 24)
    oracle = game.oracle()
    assert oracle is not None
    assert step(game, oracle)[3] is Verdict.SOLVED


# --- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("plan * then +", "*+"),
        ("Plan: ×, then −.", "*-"),
        ("plan ÷ then ·", "/*"),
        ("*+", "*+"),
        ("times, then plus", "*+"),
        ("first divided by, then minus", "/-"),
        ("MULTIPLY and add", "*+"),
        ("divide, subtract", "/-"),
        ("well-known trick: 3*7 and then +2", "*+"),
        ("plan - then -", "--"),
        ("- plan * then +", "*+"),
        (" * Plan: - then +", "-+"),
        ("Here it is:\n+ plan times, then plus", "*+"),
        ("-plan - then -", "--"),
        ("- then +", "-+"),
        ("- then + is a plan", "-+"),
        ("- plan *", None),
        ("plan *", None),
        ("plan * then + then +", None),
        ("surplus minuscule", None),
        ("", None),
        ("+" * 10**6, None),
        ("-a" * 10**5, None),
        ("\n \t" * 10**5, None),
        ("-" + " " * 10**6 + "plan", None),
    ],
)
def test_sketch_keys(sketch: str, key: str | None) -> None:
    assert puzzle((3, 7, 2), 23).sketch_key(sketch) == key


def test_a_plan_has_one_operator_fewer_than_numbers() -> None:
    game = puzzle((3, 7, 2, 5), 23)
    assert game.sketch_key("plan * then +") is None
    assert game.sketch_key("plan * then + then /") == "*+/"
    assert game.sketch_request(0) == "\nFirst name the operators in order, as: plan * then + then -"
    assert game.sketch_key(game.sketch_request(0)) == "*+-"
    assert game.guidance("plan x").endswith("\nplan x")


@given(st.text(max_size=200))
def test_any_text_is_a_plan_or_none(text: str) -> None:
    key = puzzle((3, 7, 2), 23).sketch_key(text)
    assert key is None or re.fullmatch(r"[-+*/]{2}", key)


@given(st.lists(st.sampled_from("+-*/"), min_size=2, max_size=5).map("".join))
def test_plans_read_back(plan: str) -> None:
    game = puzzle(tuple(range(1, len(plan) + 2)), 23)
    assert game.sketch_key(plan_text(plan)) == plan
