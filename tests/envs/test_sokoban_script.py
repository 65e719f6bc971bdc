"""Sokoban's script: sketches that are the first pushes of solutions, play that follows them, careful and careless."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest

from envs.protocol import spoken
from envs.sokoban.grid import Board, Push
from envs.sokoban.levels import parse
from envs.sokoban.script import SokobanScript, plans, runs_of, solution
from tests.envs.test_sokoban import DETOUR, ROOM, game, say, sokoban


def pushes(board: Board, moves: Sequence[str]) -> list[Push]:
    """Those among the moves."""
    made = []
    for name in moves:
        after = board.moved(name)
        if after.boxes != board.boxes:
            made.append((after.player, name))
        board = after
    return made


def test_plans_are_the_first_pushes_of_all_short_solutions() -> None:
    env = game(ROOM)
    script = SokobanScript()
    assert sorted(script.sketches(env)) == [
        "push r3c3 Down, then r4c3 Right",
        "push r3c3 Right, then r3c4 Down",
        "push r3c3 Right, then r3c4 Right",
    ]
    assert sorted(script.sketches(game(ROOM, max_actions=6))) == [
        "push r3c3 Down, then r4c3 Right",
        "push r3c3 Right, then r3c4 Right",
    ]
    assert script.sketches(game(DETOUR))[0] == "push r3c4 Left"
    assert script.sketches(game(DETOUR, actions_per_turn=1, max_actions=1)) == ["push r3c4 Left"]


@pytest.mark.parametrize("fields", [{}, {"rows": 7, "columns": 7, "boxes": 2, "max_turns": 8, "max_actions": 20}])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_guided_play_makes_the_pushes_of_its_sketch_and_solves(fields: dict[str, int], width: int) -> None:
    env = sokoban(**{"max_actions": 10, **fields, "actions_per_turn": width, "max_turns": 20})
    script, rng, counts = SokobanScript(), np.random.default_rng(0), []
    for seed in range(25):
        env.reset(seed=seed)
        offered = script.sketches(env)
        counts.append(len(offered))
        assert offered
        for sketch in offered[:6]:
            env.reset(seed=seed)
            start = env.state
            wanted = env.pushes_of(sketch)
            assert wanted
            played: list[str] = []
            for thought, answer in script.answers(env, sketch, True, rng):
                assert f"P {env.place(env.state.player)} to " in thought
                played += answer.split(" || ")
                *_, terminated, truncated, _ = env.step(spoken(env.settings, thought, answer))
                if terminated or truncated:
                    break
            assert env.solved
            assert pushes(start, played)[: len(wanted)] == wanted
    assert max(counts) > 2


def test_a_solution_is_cut_into_runs_of_pushes() -> None:
    board = parse("\n".join(ROOM), "here")[0]
    moves = ["Down", "Right", "Right", "Up", "Right", "Down"]
    first, second = runs_of(board, moves)
    assert (first.player, first.box, first.end, first.stand, first.name) == (7, 14, 16, 13, "Right")
    assert first.trace == (("Down", 13), ("Right", 14), ("Right", 15))
    assert (second.player, second.box, second.end, second.stand) == (15, 16, 22, 10)
    assert second.trace == (("Up", 9), ("Right", 10), ("Down", 16))


def test_thoughts_name_box_aim_and_each_cell_of_the_turn() -> None:
    env = game(("######", "#@   #", "# $ .#", "#    #", "#    #", "######"), actions_per_turn=2)
    said = SokobanScript().answers(env, None, True, np.random.default_rng(0))
    thought, answer = next(said)
    assert (thought, answer) == ("box r3c3 to r3c5 Right. P r2c2 to r3c2: Down r3c2, Right r3c3.", "Down || Right")
    env.step(say(answer))
    thought, answer = next(said)
    assert (thought, answer) == ("box r3c4 to r3c5 Right. P r3c3 to r3c3: Right r3c4.", "Right")


def test_careless_play_goes_at_a_box_or_holds_a_direction() -> None:
    env = game(ROOM)
    seen = {next(SokobanScript().answers(env, None, False, np.random.default_rng(seed))) for seed in range(40)}
    assert ("P r2c2, box r3c3: Right, Down, Down, Down, Down.", "Right || Down || Down || Down || Down") in seen
    assert ("P r2c2, box r3c3: Up, Up, Up, Up, Up.", " || ".join(["Up"] * 5)) in seen
    assert len(seen) == 5


def test_without_a_solution_careful_play_is_careless() -> None:
    env = game(ROOM, actions_per_turn=2, max_actions=2)
    assert solution(env, ()) is None
    assert plans(env) == []
    assert solution(env, ((14, "Left"), (14, "Left"))) is None
    (thought, _), *_ = islice(SokobanScript().answers(env, None, True, np.random.default_rng(0)), 3)
    assert thought.startswith("P r2c2, box r3c3: ")


@pytest.mark.parametrize("fields", [{}, {"actions_per_turn": 1, "max_turns": 10}])
def test_careful_play_wins_and_careless_play_mostly_loses(fields: dict[str, int]) -> None:
    env, wins = sokoban(**fields), {True: 0, False: 0}
    for careful in wins:
        for seed in range(200):
            env.reset(seed=seed)
            for thought, answer in SokobanScript().answers(env, None, careful, np.random.default_rng(seed)):
                *_, terminated, truncated, _ = env.step(spoken(env.settings, thought, answer))
                if terminated or truncated:
                    break
            wins[careful] += env.solved
    assert wins[True] == 200
    assert 0 < wins[False] < 60
