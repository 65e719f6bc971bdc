"""FrozenLake: its rules, slips and openings; best play against brute force and gymnasium's own lake."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product

import gymnasium
import numpy as np
import pytest

from configs.environments import FrozenLakeSettings
from envs.base import BadEnvironment
from envs.demonstrations import demonstrate
from envs.frozen_lake.env import FrozenLake
from envs.frozen_lake.lake import NAMES, BestPlay, Cell, Lake
from envs.frozen_lake.script import FrozenLakeScript
from envs.trajectory import Verdict

ANSWERS = re.compile(r"<answer>(.*?)</answer>")


def lake(**fields: float) -> FrozenLake:
    return FrozenLake(FrozenLakeSettings.model_validate(fields))


def board(rows: str, **fields: float) -> FrozenLake:
    """A game on a map that is written out, rows separated by `/`."""
    cells = {(r, c): letter for r, row in enumerate(rows.split("/")) for c, letter in enumerate(row)}
    game = lake(size=rows.index("/"), **fields)
    game.reset(seed=0)
    holes = frozenset(cell for cell, letter in cells.items() if letter == "H")
    ends = [next(cell for cell, letter in cells.items() if letter == end) for end in "GP"]
    game.state = Lake(rows.index("/"), holes, *ends)
    return game


def say(*moves: str) -> str:
    return f"<think>so</think><answer>{' || '.join(moves)}</answer>"


def play(game: FrozenLake, answers: Iterable[str]) -> list[tuple[str, float, bool, bool, Verdict]]:
    """The steps of an episode, to its end or to the last answer."""
    steps = []
    for answer in answers:
        text, reward, terminated, truncated, info = game.step(answer)
        steps.append((text, reward, terminated, truncated, info["outcome"].verdict))
        if terminated or truncated:
            break
    return steps


def test_seeds_differ() -> None:
    game = lake()
    assert len({game.reset(seed=seed)[0] for seed in range(50)}) > 45


def test_limits_of_one_move_still_have_maps() -> None:
    game = lake(max_turns=1, max_actions=1)
    game.reset(seed=0)
    assert game.ceiling() == 1


def test_start_and_goal_can_be_the_corners() -> None:
    game = lake(random_ends=False, max_turns=9, max_actions=9)
    for seed in range(20):
        game.reset(seed=seed)
        assert (game.state.player, game.state.goal) == ((0, 0), (3, 3))


@pytest.mark.parametrize("fields", [{"hole_share": 0.995, "size": 9}, {"size": 16, "random_ends": False}])
def test_settings_without_a_map_are_refused_in_one_line(fields: dict[str, float]) -> None:
    with pytest.raises(BadEnvironment, match=r"^env\.hole_share .* env\.size .*env\.max_actions") as refused:
        lake(**fields).reset(seed=0)
    assert "\n" not in str(refused.value)


def test_the_first_message_shows_board_places_and_turns() -> None:
    game = board("PF/HG")
    assert game.render() == "P F\nH G"
    text, *_ = game.step(say("up"))
    assert text == "P r1c1, G r2c2. Left edge, Up edge, Right ice, Down hole.\n5 turns left."


def test_a_hole_ends_the_episode_with_nothing() -> None:
    game = board("PF/HG")
    (step,) = play(game, [say("Down")])
    assert step == ("You fell.", 0.0, True, False, Verdict.WRONG)
    assert game.step(say("Right"))[1:4] == (0.0, True, False)


def test_the_goal_ends_a_turn_early_and_the_answer_names_the_moves() -> None:
    game = board("PG/FF", actions_per_turn=3)
    _, reward, terminated, _, info = game.step(say("UP", "right", "Left"))
    assert (reward, terminated, info["outcome"].answer) == (1.0, True, "R")


def test_moves_beyond_a_turn_or_an_episode_are_not_made() -> None:
    game = board("PFF/FFF/FFG", actions_per_turn=2, max_actions=3)
    game.step(say("right", "right", "down"))
    assert game.state.player == (0, 2)
    _, _, terminated, truncated, info = game.step(say("left", "left"))
    assert (terminated, truncated, info["outcome"].answer, game.state.player) == (False, True, "RRL", (0, 1))


def test_an_illegal_move_costs_is_told_and_the_episode_goes_on() -> None:
    game = board("PFF/FFF/FFG", actions_per_turn=2)
    text, reward, terminated, truncated, info = game.step(say("right", "jump"))
    assert text.startswith("Illegal action jump: moves are Left, Up, Right, Down.\nP r1c2")
    assert (reward, terminated, truncated) == (game.settings.format_penalty, False, False)
    assert info["outcome"].verdict is Verdict.WRONG


def test_only_unreadable_answers_are_unparsable_and_one_readable_makes_it_wrong() -> None:
    mute, mixed = board("PF/FG"), board("PF/FG")
    steps = play(mute, ["right", "<answer></answer>", "", *["?"] * 9])
    assert steps[0][0].startswith("Unreadable answer.\n")
    assert len(steps) == mute.settings.max_turns
    assert steps[-1][3:] == (True, Verdict.UNPARSABLE)
    assert sum(step[1] for step in steps) == pytest.approx(mute.settings.max_turns * mute.settings.format_penalty)
    assert play(mixed, [say("up"), *["?"] * 9])[-1][4] is Verdict.WRONG


def test_a_slip_goes_to_either_side_and_as_often_as_it_says() -> None:
    counts = {(0, 1): 0, (1, 2): 0, (2, 1): 0, (1, 0): 0}
    for seed in range(3000):
        game = board("FFF/FPF/FFG", slip=0.3)
        game.np_random = np.random.default_rng(seed)
        game.step(say("up"))
        counts[game.state.player] += 1
    shares = {cell: count / 3000 for cell, count in counts.items()}
    assert shares[(0, 1)] == pytest.approx(0.7, abs=0.03)
    assert shares[(1, 0)] == pytest.approx(0.15, abs=0.03)
    assert shares[(1, 2)] == pytest.approx(0.15, abs=0.03)
    assert shares[(2, 1)] == 0


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("begin Right, Down", "Right,Down"),
        (" Begin: down down LEFT please", "Down,Down,Left"),
        ("up", "Up"),
        ("begin Right, Down, Down, Left", None),
        ("begin", None),
        ("rightdown", None),
        ("", None),
        ("r" * 5000, None),
        ("up " * 5000, None),
    ],
)
def test_sketch_keys(sketch: str, key: str | None) -> None:
    assert lake().sketch_key(sketch) == key


def test_openings_are_the_first_moves_of_safe_ways_within_the_limit() -> None:
    game = board("PFF/FHF/FFG")
    assert game.state.openings(3, 4) == [("Right", "Right", "Down"), ("Down", "Down", "Right")]
    assert game.state.openings(2, 4) == [("Right", "Right"), ("Down", "Down")]
    assert game.state.openings(9, 4) == [("Right", "Right", "Down", "Down"), ("Down", "Down", "Right", "Right")]
    assert game.state.openings(3, 3) == []
    # The goal ends an opening; an edge and a hole are none.
    assert board("PG/FH").state.openings(3, 3) == [("Right",)]


def test_a_hole_is_a_readable_sketch() -> None:
    game = board("PF/HG")
    assert game.sketch_key("begin Down") == "Down"
    assert FrozenLakeScript().sketches(game) == ["begin Right, Down"]


def test_openings_lead_to_the_goal() -> None:
    game = lake()
    for seed in range(50):
        game.reset(seed=seed)
        sketches = FrozenLakeScript().sketches(game)
        assert sketches
        assert len(set(sketches)) == len(sketches)
        for sketch in sketches:
            game.reset(seed=seed)
            for move in (game.sketch_key(sketch) or "").split(","):
                game.step(say(move))
            while not game.solved:
                assert game.ceiling() == 1
                game.step(say(str(game.oracle()).split(" || ")[0]))


def neighbour(cell: Cell, name: str, size: int) -> Cell:
    """Of gymnasium's lake, by its own numbering of the moves (0 left, 1 down, 2 right, 3 up)."""
    made = gymnasium.make("FrozenLake-v1", desc=["S" + "F" * (size - 1)] * size, is_slippery=False).unwrapped
    action = ["Left", "Down", "Right", "Up"].index(name)
    ((_, reached, _, _),) = made.P[cell[0] * size + cell[1]][action]  # type: ignore[attr-defined]
    return int(reached // size), int(reached % size)


def test_moves_lead_where_gymnasiums_lead() -> None:
    state = Lake(3, frozenset(), (2, 2), (0, 0))
    for row, column, name in product(range(3), range(3), NAMES):
        assert state.beside((row, column), name) == neighbour((row, column), name, 3)


@pytest.mark.parametrize("slip", [0.2, 2 / 3])
def test_the_best_chance_is_that_of_a_value_iteration_on_gymnasiums_lake(slip: float) -> None:
    rows = ["SFFF", "FHFH", "FFFH", "HFFG"]
    made = gymnasium.make("FrozenLake-v1", desc=rows, is_slippery=True, success_rate=1 - slip).unwrapped
    values = np.zeros(16)
    values[15] = 1
    for _ in range(10):
        after = [
            max(sum(p * values[to] for p, to, _, _ in outcomes) for outcomes in made.P[cell].values())  # type: ignore[attr-defined]
            for cell in range(16)
        ]
        values = np.array([1.0 if cell == 15 else 0.0 if cell in (5, 7, 11, 12) else after[cell] for cell in range(16)])
    game = board("PFFF/FHFH/FFFH/HFFG", slip=slip, max_turns=10, max_actions=10)
    assert game.ceiling() == pytest.approx(values[0])


def chance(state: Lake, moves: tuple[str, ...], slip: float) -> dict[Lake, float]:
    """Where a turn's moves lead, and how likely, by trying every slip."""
    ends = {state: 1.0}
    for move in moves:
        after: dict[Lake, float] = {}
        for here, p in ends.items():
            over = here.player == here.goal or here.player in here.holes
            at = NAMES.index(move)
            ways = [(move, 1 - slip), (NAMES[at - 1], slip / 2), (NAMES[(at + 1) % 4], slip / 2)]
            for name, q in [(move, 1.0)] if over else ways:
                there = here if over else here.moved(name)
                after[there] = after.get(there, 0) + p * q
        ends = after
    return ends


def test_best_play_of_several_moves_a_turn_agrees_with_trying_everything() -> None:
    @cache
    def best(state: Lake, turns: int, actions: int) -> float:
        if state.player == state.goal:
            return 1.0
        if state.player in state.holes or not turns:
            return 0.0
        tries = [moves for n in range(1, min(2, actions) + 1) for moves in product(NAMES, repeat=n)]
        worth = [
            sum(p * best(end, turns - 1, actions - len(moves)) for end, p in chance(state, moves, 0.3).items())
            for moves in tries
        ]
        return max(worth, default=0.0)

    rng = np.random.default_rng(0)
    for _ in range(12):
        ends = [divmod(int(c), 3) for c in rng.choice(9, 2, replace=False)]
        holes = frozenset(divmod(int(c), 3) for c in rng.choice(9, 2)) - set(ends)
        state = Lake(3, holes, *ends)
        table = BestPlay(state, 0.3, turns=3, actions=4, width=2)
        value, moves = table.chance(state.player, 3, 4), table.moves(state.player, 3, 4)
        assert value == pytest.approx(best(state, 3, 4))
        if moves:
            of_moves = chance(state, tuple(moves), 0.3).items()
            assert sum(p * best(end, 2, 4 - len(moves)) for end, p in of_moves) == pytest.approx(value)


def test_the_oracle_wins_as_often_as_the_ceiling_says() -> None:
    game = lake(slip=0.3, actions_per_turn=2)
    expected, won = [], []
    for seed in range(400):
        game.reset(seed=seed)
        expected.append(game.ceiling())
        while (answer := game.oracle()) is not None:
            _, _, terminated, truncated, _ = game.step(f"<answer>{answer}</answer>")
            if terminated or truncated:
                break
        won.append(game.solved)
    assert 0.3 < np.mean(expected) < 0.95
    assert np.mean(won) == pytest.approx(np.mean(expected), abs=3 * float(np.std(won)) / 20)


@pytest.mark.parametrize("fields", [{}, {"actions_per_turn": 2, "max_actions": 8}, {"slip": 0.2, "size": 5}])
def test_guided_play_begins_as_it_was_told_and_goes_on_as_plain_play(fields: dict[str, float]) -> None:
    game, begun, solved = lake(**fields), [], []
    for seed in range(300):
        conversation = demonstrate(game, FrozenLakeScript(), seed, 0.5)
        first, _ = game.reset(seed=seed)
        shown = conversation[1].content
        told = game.sketch_key(shown.removeprefix(first))
        if told is None or shown == first + game.sketch_request(0):
            continue
        assert f"begin {told.replace(',', ', ')}" in FrozenLakeScript().sketches(game)
        answers = [m.content for m in conversation if m.trained]
        said = ",".join(re.findall("Left|Up|Right|Down", " ".join(answer.split("<answer>")[1] for answer in answers)))
        begun.append(said.startswith(told))
        solved.append(play(game, answers)[-1][4] is Verdict.SOLVED)
    assert len(begun) > 80
    if not game.settings.slip:
        assert np.mean(begun) == 1
        assert np.mean(solved) > 0.9
    else:
        assert np.mean(begun) > 0.8


def test_an_opening_that_a_slip_has_made_unsafe_is_given_up_for_good() -> None:
    game = board("PFF/FHF/FFG")
    answers = FrozenLakeScript().answers(game, "begin Right, Right, Down", True, np.random.default_rng(0))
    said = []
    for player in ((0, 0), (1, 0), (2, 0)):  # the first move slips down, where the next one leads into the hole
        game.state = replace(game.state, player=player)
        said.append(next(answers)[1])
    assert said == ["Right", "Down", "Right"]


def test_skill_makes_plain_play_careful() -> None:
    """Careful play looks at the cell ahead and wins; careless play names a move and mostly loses."""

    def solved(skill: float) -> float:
        game, wins = lake(), []
        for seed in range(600):
            conversation = demonstrate(game, FrozenLakeScript(), seed, skill)
            first, _ = game.reset(seed=seed)
            if conversation[1].content == first:
                wins.append(play(game, [m.content for m in conversation if m.trained])[-1][4] is Verdict.SOLVED)
        return float(np.mean(wins))

    assert solved(1.0) == 1.0
    assert solved(0.0) < 0.4


def test_nothing_can_be_hoped_for_or_done_once_a_game_is_over() -> None:
    won, lost = board("PG/FH", slip=0.3), board("PG/HF", slip=0.3)
    for game, moves in ((won, ["right", "left"]), (lost, ["down"])):
        while not game.solved and not game.lost:
            game.np_random = np.random.default_rng(5)
            game.step(say(*moves))
    assert (won.ceiling(), won.oracle(), won.optimal_length()) == (1.0, None, 0)
    assert (lost.ceiling(), lost.oracle(), lost.optimal_length()) == (0.0, None, None)


def test_long_turns_and_many_actions_keep_the_ceiling_cheap() -> None:
    few, many = lake(slip=0.2, max_actions=6), lake(slip=0.2, max_actions=10**6)
    wide = lake(slip=0.2, size=16, max_turns=4, actions_per_turn=32, max_actions=128)
    for game in (few, many, wide):
        game.reset(seed=3)
    assert many.ceiling() == few.ceiling()
    assert (few.ceiling_is_exact, wide.ceiling_is_exact) == (True, False)
    assert 0 < wide.ceiling() <= 1
    assert wide.oracle()


def test_steps_against_the_edge_make_no_other_solution() -> None:
    game = board("PFG/FFF/FFF")
    for move in ("up", "left", "right"):
        game.step(say(move))
    assert game.step(say("right"))[4]["outcome"].answer == "RR"
    assert len(game.done) == 4
