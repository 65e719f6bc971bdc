"""Sudoku as a game: what an answer may say, what it earns, and how well an episode can be played."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from configs.environments import SudokuSettings
from envs.sudoku.env import Sudoku, placement
from envs.sudoku.grid import Board, Digits
from envs.sudoku.solver import solutions
from envs.trajectory import Verdict
from tests.envs.reference import reasoning_gym

# Hand-made; r1c4 lacks 4 only, and so on to the one solution 1234/3421/2143/4312.
GIVENS = (1, 2, 3, 0, 3, 4, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0)
SOLUTION = (1, 2, 3, 4, 3, 4, 2, 1, 2, 1, 4, 3, 4, 3, 1, 2)
RIGHT = ["r1c4=4", "r2c3=2", "r3c2=1", "r3c3=4", "r3c4=3", "r4c1=4", "r4c2=3", "r4c3=1", "r4c4=2"]
WHOLE = "1 2 3 4\n3 4 2 1\n2 1 4 3\n4 3 1 2"


def sudoku(**fields: Any) -> Sudoku:
    return Sudoku(SudokuSettings.model_validate({"blanks": 9, **fields}))


def game(givens: Digits = GIVENS, **fields: Any) -> Sudoku:
    """A game of a puzzle that is written out."""
    made = sudoku(**{"blanks": givens.count(0), **fields})
    made.reset(seed=0)
    (solution,) = solutions(4, givens)
    made.state = Board(4, givens, solution, givens)
    return made


def say(*words: str) -> str:
    return f"<think>so</think><answer>{' || '.join(words)}</answer>"


def text_of(made: Sudoku, *words: str) -> str:
    return made.step(say(*words))[0]


def verdict_of(made: Sudoku, answer: str) -> Verdict:
    verdict: Verdict = made.step(answer)[4]["outcome"].verdict
    return verdict


# --- texts -----------------------------------------------------------------------------------------------------------


def test_messages_show_the_grid_once_each() -> None:
    made = game()
    assert made.render() == "1230\n3401\n2000\n0000"
    assert made._opening() == f"{made.render()}\n5 turns, 32 actions left."
    assert text_of(made, "r1c4=4", "r4c1=4") == "1234\n3401\n2000\n4000\n4 turns, 30 actions left."
    assert text_of(made, WHOLE) == "Solved."


def test_the_digits_a_cell_sees_can_be_told() -> None:
    made = game(show_seen=True)
    assert "Behind an empty cell: the digits in its row, column and box." in made.rules
    told = "r1c4 123, r2c3 134, r3c2 24, r3c3 23, r3c4 12, r4c1 123, r4c2 24, r4c3 3, r4c4 1"
    assert made._opening() == f"1230\n3401\n2000\n0000\n{told}\n5 turns, 32 actions left."
    assert text_of(made, "r1c4=4", "r4c1=4").startswith("r2c3 134, r3c2 24, r3c3 23, r3c4 124, ")
    # Own digits are told where one shows to be wrong: there are two 4 in column 4.
    assert text_of(made, "r3c4=4").startswith("own r1c4=4, r3c4=4, r4c1=4\nr2c3 134, r3c2 24, r3c3 234, r4c2 24, ")
    assert text_of(made, "r3c4=3").startswith("r2c3 134, r3c2 234, ")
    # Nothing is left to be told of a full grid but the grid.
    assert text_of(made, "1234342121134342").startswith("1234\n3421\n2113\n4342\n")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {},
            "2x2 box holds 1 to 4 once. r1c2: row 1, column 2. Own digits can be replaced, given ones not. "
            "Reply <think>...</think><answer>r1c2=3 || r4c1=2<",
        ),
        ({}, "Fill every 0 so that each row, column and 2x2 box "),
        ({}, "at most 16 a turn or the whole grid."),
        ({"actions_per_turn": 1, "max_turns": 9}, "<answer>r1c2=3</answer>, at most 1 a turn."),
        ({"size": 9}, "3x3 box holds 1 to 9 once."),
    ],
)
def test_the_rules_say_what_the_settings_allow(fields: dict[str, Any], words: str) -> None:
    assert words in sudoku(**fields).rules


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["r1c4=4", "R1C4=4", "r1c4 = 4", "r1c4 4", " r 1 c 4  =\n4 ", "r01c04=4", "r1c4" + " " * 9000 + "= 4"]
)
def test_a_placement_is_read_in_all_its_forms(word: str) -> None:
    made = game()
    assert made.step(say(word))[1] == 0
    assert made.state.grid == (*GIVENS[:3], 4, *GIVENS[4:])
    assert made.done == ["r1c4=4"]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("r1c1=1", "r1c1 is given."),
        ("r1c1=2", "r1c1 is given."),
        ("r0c1=1", "rows and columns are 1 to 4."),
        ("r1c5=1", "rows and columns are 1 to 4."),
        ("r9999c1=1", "rows and columns are 1 to 4."),
        ("r1c4=5", "digits are 1 to 4."),
        ("r1c4=0", "digits are 1 to 4."),
        ("r1c4=3", "3 is in row 1 already."),
        ("r3c2=2", "2 is in row 3 already."),
        ("r4c2=4", "4 is in column 2 already."),
        ("r4c2=2", "2 is in column 2 already."),
        ("r2c3=1", "1 is in row 2 already."),
    ],
)
def test_what_a_given_or_the_board_forbids_is_told_and_costs(word: str, why: str) -> None:
    made = game()
    text, reward, terminated, truncated, info = made.step(say(word))
    assert text == f"Illegal action {word}: {why}\n{made.render()}\n4 turns, 32 actions left."
    assert (reward, terminated, truncated) == (made.settings.format_penalty, False, False)
    assert made.state.grid == GIVENS
    assert info["outcome"].verdict is Verdict.WRONG


def test_a_given_in_the_box_alone_forbids_too() -> None:
    made = game((1, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 4, 0))
    assert "3 is in column 2 already." in text_of(made, "r2c2=3")
    assert "1 is in box 1 already." in text_of(made, "r2c2=1")
    assert "4 is in box 4 already." in text_of(made, "r3c4=4")


@pytest.mark.parametrize(
    "word", ["up", "r1c4", "r1c4=", "r1c44", "r1c4=4x", "r1c4==4", "r1c4=\u0664", "1 2 3", "4" * 17]
)
def test_what_is_no_action_is_unreadable(word: str) -> None:
    made = game()
    text, reward, _, _, info = made.step(say(word))
    assert "an action is as r1c2=3, or an answer is all 16 digits." in text
    assert (reward, made.state.grid) == (made.settings.format_penalty, GIVENS)
    assert info["outcome"].verdict is Verdict.UNPARSABLE
    assert verdict_of(made, say("r1c4=4", "?")) is Verdict.WRONG


@pytest.mark.parametrize(
    "words", [("1230342121434312",), ("1 2 3 4\n3 4 2 0\n2 1 4 3\n4 3 1 0",), (RIGHT[0], "0" * 16)]
)
def test_a_whole_grid_with_blanks_is_refused_for_them(words: tuple[str, ...]) -> None:
    made = game()
    text, reward, *_ = made.step(say(*words))
    assert ": the grid has a 0: fill every cell.\n" in text
    assert reward == made.settings.format_penalty
    assert made.done == list(words[:-1])


def test_actions_before_one_that_cannot_be_made_stand() -> None:
    made = game()
    assert "r4c1 is" not in text_of(made, "r1c4=4", "r1c1=1", "r4c1=4")
    assert made.done == ["r1c4=4"]


def test_own_digits_may_clash_and_be_overwritten() -> None:
    made = game()
    # r3c2 and r3c3 swapped, and a repetition: all allowed.
    text_of(made, "r3c2=1", "r3c2=1", "r3c3=1", "r3c4=4")
    assert made.state.grid[9:12] == (1, 1, 4)
    assert len(made.done) == 4
    text_of(made, "r3c3=4", "r3c4=3")
    assert made.state.grid[9:12] == (1, 4, 3)


def test_a_solved_grid_earns_one_and_ends_the_answer() -> None:
    made = game()
    _, reward, terminated, truncated, info = made.step(say(*RIGHT[::-1], "r1c4=4"))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert len(made.done) == 9
    assert info["outcome"].verdict is Verdict.SOLVED
    assert info["outcome"].answer == "1234342121434312"
    assert made.step(say("r1c4=4"))[:4] == ("It is over.", 0.0, True, False)


def test_the_order_of_placements_makes_no_other_solution() -> None:
    one, other = game(), game()
    assert one.step(say(*RIGHT))[4] == other.step(say(*RIGHT[::-1]))[4] == game().step(say(WHOLE))[4]


@pytest.mark.parametrize(
    "whole", [WHOLE, WHOLE.replace(" ", ""), WHOLE.replace("\n", " | "), "1234342121434312", "1234|3421|2143|4312|"]
)
def test_a_whole_grid_is_all_the_placements_it_changes(whole: str) -> None:
    made = game()
    text_of(made, "r1c4=4")
    _, reward, terminated, _, _ = made.step(say(whole))
    assert (reward, terminated) == (1.0, True)
    assert made.done == RIGHT


def test_a_wrong_whole_grid_is_played_on_with() -> None:
    made = game()
    wrong = "1234342121134342"  # the 4 and the 1 of column 3 are swapped
    text, reward, terminated, truncated, _ = made.step(say(wrong))
    assert text == "1234\n3421\n2113\n4342\n4 turns, 23 actions left."
    assert (reward, terminated, truncated, made.optimal_length()) == (0.0, False, False, 2)
    # Said again, it is an action like any other.
    assert verdict_of(made, say(wrong)) is Verdict.WRONG
    assert len(made.done) == 10
    assert made.step(say(WHOLE))[1:3] == (1.0, True)
    assert len(made.done) == 12


def test_a_whole_grid_against_a_given_places_nothing() -> None:
    made = game()
    text, reward, *_ = made.step(say("1244342121434312"))
    assert text.startswith("Illegal action r1c3=4: r1c3 is given.\n")
    assert (reward, made.state.grid) == (made.settings.format_penalty, GIVENS)
    assert "digits are 1 to 4" in text_of(made, "1239342121434312")


def test_a_whole_grid_fills_no_more_than_a_turn_allows_and_stands_alone() -> None:
    made = game(actions_per_turn=4, max_turns=3)
    text_of(made, WHOLE)
    assert made.done == RIGHT[:4]
    assert "an answer is all 16 digits" in text_of(made, "r3c4=3", WHOLE)
    assert made.done == RIGHT[:5]


@pytest.mark.parametrize(("credit", "right", "earned"), [(0.5, 4, 0.5 * 4 / 9), (0.5, 0, 0.0), (0.0, 4, 0.0)])
def test_an_unsolved_game_earns_its_share_of_right_blanks_at_its_end(credit: float, right: int, earned: float) -> None:
    made = game(partial_credit=credit, max_turns=2)
    assert made.step(say(*RIGHT[:right] or ["r4c4=4"]))[1] == 0
    text, reward, terminated, truncated, _ = made.step(say("r4c4=3"))
    assert (text, terminated, truncated) == ("Not solved.", False, True)
    assert reward == pytest.approx(earned)
    assert game(partial_credit=credit).step(say(WHOLE))[1] == 1.0


@given(
    st.lists(st.text(alphabet="rRcC=0123459| \n.x\u0664\u00bd", max_size=30), max_size=6).map(" || ".join)
    | st.from_regex(r"r[0-9]c[0-9] ?=? ?[0-9]", fullmatch=True)
    | st.text(alphabet="1234 |\n", min_size=16, max_size=40)
)
@example(WHOLE)
def test_any_answer_is_played_or_refused(answer: str) -> None:
    made = game()
    text, reward, _, _, info = made.step(say(answer))
    assert made.observation_space.contains(text)
    assert reward in (0.0, 1.0, made.settings.format_penalty)
    assert all(g in (0, d) for g, d in zip(GIVENS, made.state.grid, strict=True))
    assert (info["outcome"].verdict is Verdict.SOLVED) == (made.state.grid == SOLUTION)
    # What was done is what stands in the grid: each action is a legal placement.
    again = game()
    assert not again.step(say(*made.done or ["r1c4=4"]))[0].startswith("Illegal")
    assert made.state.grid == (again.state.grid if made.done else GIVENS)


# --- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("start r1c4", "r1c4"),
        ("start r3c4, r1c4", "r3c4 r1c4"),
        ("Row 3, column 4 then row 1 col 4.", "r3c4 r1c4"),
        ("r1c4 r1c4 r2c3", "r1c4 r2c3"),
        ("start r1c1, r1c4", "r1c4"),
        ("r1c4, r2c3, r3c2, r3c3", "r1c4 r2c3 r3c2"),
        ("start r1c1", None),
        ("start r1c5, r0c1, r44c4", None),
        ("car1cat4", None),
        ("start", None),
        ("", None),
        ("r" * 100_000, None),
        ("r" + " " * 100_000 + "1c4", None),
    ],
)
def test_sketch_keys(sketch: str, key: str | None) -> None:
    made = game()
    assert made.sketch_key(sketch) == key
    made.step(say(*RIGHT[:5]))
    assert made.sketch_key(sketch) == key


@pytest.mark.parametrize(("actions", "hope"), [(11, 1.0), (10, 0.0)])
def test_swapped_digits_are_put_right_in_two_actions(actions: int, hope: float) -> None:
    """Were own digits in the way, neither of column 3 could be placed before the other is gone."""
    made = game(max_actions=actions, actions_per_turn=9)
    made.step(say("r3c3=1", "r4c3=4"))
    assert (made.optimal_length(), made.ceiling()) == (9, hope)
    made.step(say("r3c3=4", "r4c3=1"))
    assert (made.optimal_length(), made.ceiling()) == (7, hope)
    assert (made.oracle() is None) == (hope == 0)


def test_reasoning_gym_puzzles_are_solved_by_their_answers() -> None:
    theirs = reasoning_gym("games.mini_sudoku")
    judge = theirs.MiniSudokuDataset(theirs.MiniSudokuConfig(seed=1, size=20))
    for number in range(20):
        entry = judge[number]
        givens = tuple(digit for row in entry["metadata"]["puzzle"] for digit in row)
        made = game(givens)
        assert made.step(say(entry["answer"]))[1] == judge.score_answer(entry["answer"], entry) == 1.0
        assert all(placement(c, made.state.solution[c], 4) in made.done for c in made.state.blanks)
