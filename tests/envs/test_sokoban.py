"""Sokoban as a text game: messages, rewards, verdicts, sketches and how well it can be played."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.environments import SokobanSettings
from envs.base import BadEnvironment
from envs.sokoban import rooms
from envs.sokoban.env import Sokoban
from envs.sokoban.grid import NAMES
from envs.sokoban.levels import parse
from envs.sokoban.search import Solver
from envs.trajectory import Verdict

ROOM = ("######", "#@   #", "# $  #", "#   .#", "#    #", "######")
DETOUR = ("######", "#    #", "# .$@#", "#    #", "#    #", "######")


def sokoban(**fields: object) -> Sokoban:
    env = Sokoban(SokobanSettings.model_validate(fields))
    env.reset(seed=0)
    return env


def game(rows: Sequence[str], **fields: object) -> Sokoban:
    """A game on a board that is written out."""
    env = sokoban(rows=len(rows), columns=len(rows[0]), **fields)
    env.state = parse("\n".join(rows), "here")[0]
    return env


def say(*moves: str) -> str:
    return f"<think>so</think><answer>{' || '.join(moves)}</answer>"


# --- texts ------------------------------------------------------------------------------------------------------------


def test_the_first_message_shows_board_places_and_what_is_left() -> None:
    env = game(ROOM)
    assert env.render() == "# # # # # #\n# P - - - #\n# - B - - #\n# - - - T #\n# - - - - #\n# # # # # #"
    assert env._opening() == (
        f"{env.render()}\nP r2c2, box r3c3, target r4c5. Left wall, Up wall, Right floor, Down floor.\n"
        "5 turns, 10 actions left."
    )


def test_later_messages_show_the_board_again_or_not() -> None:
    for show_board in (True, False):
        env = game(ROOM, show_board=show_board)
        text, *_ = env.step(say("Down"))
        board = "# # # # # #\n# - - - - #\n# P B - - #\n# - - - T #\n# - - - - #\n# # # # # #\n" if show_board else ""
        assert text == (
            f"{board}P r3c2, box r3c3, target r4c5. Left wall, Up floor, Right box, Down floor.\n"
            "4 turns, 9 actions left."
        )


def test_what_stands_on_targets_is_told() -> None:
    env = game(("#######", "#.@.$.#", "# $ $ #", "#######"), boxes=3)
    env.step(say("Left"))
    assert env.render().splitlines()[1] == "# + - T B T #"
    env.step(say("Right", "Right"))
    text, *_ = env.step(say("Right"))
    assert env.render().splitlines()[1] == "# T - T P * #"
    assert "P r2c5, box r2c6 r3c3 r3c5, target r2c2 r2c4 r2c6. Left target, Up wall, Right box, Down box." in text


def test_the_rules_show_as_many_moves_as_a_turn_allows() -> None:
    assert "<answer>Right || Down</answer>. Moves: Left, Up, Right, Down, 5 a turn." in sokoban().rules
    assert "<answer>Right</answer>. Moves: Left, Up, Right, Down, 1 a turn." in sokoban(actions_per_turn=1).rules


# --- an episode -------------------------------------------------------------------------------------------------------


def test_rewards_of_a_solved_game() -> None:
    env = game(ROOM, move_reward=-0.125)
    text, reward, terminated, truncated, info = env.step(say("down", "RIGHT", "right"))
    assert (reward, terminated, truncated) == (-0.375, False, False)
    text, reward, terminated, truncated, info = env.step(say("Up", "Right", "Down", "Left"))
    assert (text, reward, terminated, truncated) == ("All boxes are on targets.", 3 * -0.125 + 1 + 10, True, False)
    assert (info["outcome"].verdict, info["outcome"].answer) == (Verdict.SOLVED, "3,3 Right 3,4 Right 3,5 Down")
    assert env.step(say("Left"))[:4] == ("It is over.", 0, True, False)


def test_a_box_that_leaves_its_target_takes_its_reward_back() -> None:
    env = game(("#######", "#@$. .#", "# $   #", "#######"), boxes=2, move_reward=0, box_reward=2, solved_reward=5)
    rewards = [env.step(say(move))[1] for move in ("Right", "Right", "Right")]
    assert rewards == [2, -2, 2]


def test_a_move_against_a_wall_or_a_blocked_box_counts_and_does_nothing() -> None:
    env = game(ROOM)
    before = env.state
    _, reward, _, _, info = env.step(say("Left", "Up"))
    assert env.state == before
    assert reward == pytest.approx(-0.2)
    assert (info["outcome"].verdict, info["outcome"].answer) == (Verdict.WRONG, "")
    assert env.step(say("Up"))[0].endswith("3 turns, 7 actions left.")
    env = game(("######", "#@$$.#", "#   .#", "######"), boxes=2)
    before = env.state
    env.step(say("Right"))
    assert (env.state, env.done) == (before, ["R"])


def answer_of(env: Sokoban, *moves: str) -> str:
    """The canonical answer of an episode of these moves."""
    env.reset(seed=0)
    env.state = parse("\n".join(ROOM), "here")[0]
    for move in moves:
        *_, info = env.step(say(move))
    answer: str = info["outcome"].answer
    return answer


def test_the_same_pushes_are_the_same_answer_whatever_is_walked_between_them() -> None:
    env = game(ROOM, max_turns=20, max_actions=20)
    plan = ("Down", "Right", "Right", "Up", "Right", "Down")
    for detour in ((), ("Up", "Left"), ("Right", "Left"), ("Down", "Down", "Up", "Up")):
        assert answer_of(env, *detour, *plan) == "3,3 Right 3,4 Right 3,5 Down"
        assert env.solved
        assert len(env.done) == len(detour) + len(plan)
    assert answer_of(env, "Down", "Right", "Up", "Right", "Down") == "3,3 Right 3,4 Down"
    assert answer_of(env, "Right", "Down", "Left", "Down", "Right", "Right", "Down", "Right", "Up") != answer_of(
        env, "Down", "Right", "Right"
    )


def test_moves_that_push_nothing_are_actions_too() -> None:
    env = game(ROOM, actions_per_turn=2, max_turns=2, max_actions=4)
    *_, truncated, _ = env.step(say("Left", "Left"))
    assert (env.actions_left, truncated) == (2, False)
    assert env.step(say("Right", "Left"))[3]


def test_moves_beyond_a_turn_or_an_episode_are_not_made() -> None:
    env = game(ROOM, actions_per_turn=2, max_actions=3)
    env.step(say("Right", "Right", "Down"))
    assert env.place(env.state.player) == "r2c4"
    text, _, terminated, truncated, _ = env.step(say("Left", "Left"))
    assert (terminated, truncated) == (False, True)
    assert text == "Only the first 1 of 2 actions were made.\nNo turns or actions left."
    assert env.place(env.state.player) == "r2c3"


def test_words_that_are_no_moves_are_unreadable() -> None:
    env = game(ROOM)
    text, reward, _, _, info = env.step(say("Right", "jump", "Right"))
    assert text.startswith("Illegal action jump: moves are Left, Up, Right, Down.\n# # #")
    assert reward == pytest.approx(-0.1 + env.settings.format_penalty)
    assert info["outcome"].verdict is Verdict.WRONG
    env = game(ROOM)
    assert env.step(say("push r3c3 Right"))[4]["outcome"].verdict is Verdict.UNPARSABLE


def test_settings_that_allow_no_room_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"rows \(4\) and columns \(4\) leave no three cells in a line"):
        SokobanSettings(rows=4, columns=4)
    with pytest.raises(ValidationError, match=r"boxes \(3\), their targets and the player do not fit into the 6 cells"):
        SokobanSettings(rows=4, columns=5, boxes=3)
    monkeypatch.setattr(rooms, "_drawn", lambda plan, rng: None)
    with pytest.raises(BadEnvironment) as told:
        sokoban(rows=4, boxes=3, max_actions=5)
    assert str(told.value).startswith(
        "env.boxes 3 with env.rows 4 and env.columns 6: none of 300 rooms can be solved in at most 5 moves (env.max_"
    )
    assert len(str(told.value).splitlines()) == 1


def test_reset_and_step_are_fast() -> None:
    """A twentieth of what one busy core of ours does: 6,000 rooms or 50,000 steps a second."""
    env = sokoban(actions_per_turn=1, max_turns=20, max_actions=20)
    began = time.process_time()
    for seed in range(300):
        env.reset(seed=seed)
    assert time.process_time() - began < 1
    began = time.process_time()
    for seed in range(50):
        env.reset(seed=seed)
        for _ in range(20):
            env.step(say("Left"))
    assert time.process_time() - began < 0.5


# --- how well it can be played ----------------------------------------------------------------------------------------


def test_hope_ends_with_the_moves_or_in_a_corner() -> None:
    env = game(DETOUR, actions_per_turn=2, max_actions=2, max_turns=4)
    assert (env.ceiling(), env.oracle(), env.optimal_length()) == (1, "Left", 1)
    env.step(say("Right"))
    assert env.ceiling() == 1
    env.step(say("Right"))
    assert (env.ceiling(), env.oracle(), env.optimal_length()) == (0, None, 1)
    env = game(ROOM, max_actions=50)
    env.step(say("Right", "Down", "Down"))
    assert env.ceiling_is_exact
    assert (env.ceiling(), env.oracle(), env.optimal_length()) == (0, None, None)


def test_whether_the_ceiling_is_exact_is_a_question_about_the_state() -> None:
    env = sokoban(rows=8, columns=8, boxes=3, max_turns=20, max_actions=40)
    env.solver = Solver(most_nodes=0)
    start, known = env.snapshot(), env.state.known
    # Nothing was searched, but a solution is known: that it can be solved is sure, in how many moves is not.
    assert (env.ceiling(), env.ceiling_is_exact, env.optimal_length()) == (1, True, len(known))
    off_the_way = next(name for name in NAMES if name != known[0] and env.state.moved(name) != env.state)
    env.step(say(off_the_way))
    assert (env.ceiling(), env.ceiling_is_exact) == (0, False)
    env.restore(start)
    assert (env.ceiling(), env.ceiling_is_exact) == (1, True)
    env.step(say(off_the_way))
    assert not env.ceiling_is_exact
    env.cut()
    assert (env.ceiling(), env.ceiling_is_exact) == (0, True)


def test_a_length_that_is_not_known_leaves_the_ceiling_exact() -> None:
    env = game(ROOM, actions_per_turn=2, max_actions=2)
    env.solver = Solver(most_nodes=0)
    assert not env.solver.solve(env.state).proven
    # Three pushes at least, whatever is walked between them.
    assert (env.optimal_length(), env.ceiling(), env.ceiling_is_exact) == (3, 0, True)


def test_turns_left_bound_the_moves_left() -> None:
    env = game(ROOM, actions_per_turn=2, max_turns=3, max_actions=100)
    assert (env.optimal_length(), env.ceiling()) == (6, 1)
    env.step("nothing")
    assert (env.actions_left, env.optimal_length(), env.ceiling()) == (4, 6, 0)


def test_the_oracle_plays_the_fewest_moves() -> None:
    env = sokoban(rows=7, columns=7, boxes=2, max_turns=20, actions_per_turn=3, max_actions=25)
    for seed in range(40):
        env.reset(seed=seed)
        length = env.optimal_length()
        while (answer := env.oracle()) is not None:
            if env.step(say(answer))[2]:
                break
        assert env.solved
        assert len(env.done) == length


# --- sketches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("push r3c4 Left", "3,4 Left"),
        ("push r3c4 Left, then r3c3 Up", "3,4 Left; 3,3 Up"),
        (" First PUSH row 3, column 4 left; then push r3, c3: UP.", "3,4 Left; 3,3 Up"),
        ("push (r3c4) to: up", None),
        ("push r3c4 Leftwards", None),
        ("r3c4 Left", None),
        ("r3c4 Left, push r2c2 Down", "2,2 Down"),
        ("push r0c4 Left", None),
        ("push r3c7 Left", None),
        ("push r3c4 Left, then r7c1 Up", None),
        ("push r\u0663c4 Left", None),
        ("pu\u017fh r3c4 Left", None),
        ("push r3c4", None),
        ("push r3c4 to the Left, then r3c3 Up", "3,4 Left; 3,3 Up"),
        ("push r3c4 to Left, then r3c3 the Up", "3,4 Left; 3,3 Up"),
        ("push r3c4 then r3c3 Up", None),
        ("push r3c4 Left, then r3c3", None),
        ("push r3c4 Left to r3c3, then r3c3 Up", None),
        ("push r3c4Left, then r3c3 Up", None),
        ("push r3c12345 Left, then r3c3 Up", None),
        ("push r3c4 tothe Left", None),
        ("", None),
        ("push " + "r1c1 Up " * 5000, "; ".join(["1,1 Up"] * 8)),
        ("push r" + " " * 100_000 + "3c4 Left", None),
    ],
)
def test_sketch_keys(sketch: str, key: str | None) -> None:
    assert sokoban().sketch_key(sketch) == key


@given(st.text() | st.text(alphabet="push r13c2LeftUp,;:", max_size=80).map(lambda text: f"push {text}"))
def test_any_sketch_has_a_key_of_pushes_on_the_board_or_none(sketch: str) -> None:
    env = sokoban()
    found = env.pushes_of(sketch)
    assert (env.sketch_key(sketch) is None) == (not found)
    assert all(0 <= cell < 36 for cell, _ in found or [])
