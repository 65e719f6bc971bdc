"""FrozenLake: same seed same episode, the oracle solves it, garbage scores low, and demonstrations do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import FrozenLakeSettings
from envs.frozen_lake import FrozenLake
from envs.registry import make_env
from envs.trajectory import Verdict

ANSWERS = re.compile(r"<answer>(.*?)</answer>")


def lake(**fields: float) -> FrozenLake:
    return FrozenLake(FrozenLakeSettings.model_validate(fields))


def board(rows: str, **fields: float) -> FrozenLake:
    """A game on a map that is written out, rows separated by `/`."""
    cells = {(r, c): letter for r, row in enumerate(rows.split("/")) for c, letter in enumerate(row)}
    game = lake(size=rows.index("/"), **fields)
    game.reset(seed=0)
    game.holes = frozenset(cell for cell, letter in cells.items() if letter == "H")
    game.player = next(cell for cell, letter in cells.items() if letter == "P")
    game.goal = next(cell for cell, letter in cells.items() if letter == "G")
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


def test_same_seed_same_episode_whatever_was_played_before() -> None:
    fresh, used = lake(slip=0.5), lake(slip=0.5)
    used.reset(seed=3)
    play(used, [say("right")] * 3)
    first, again = fresh.reset(seed=7), used.reset(seed=7)
    assert first == again
    answers = [say(move) for move in ("up", "right", "down", "left")]
    assert play(fresh, answers) == play(used, answers)


def test_seeds_differ() -> None:
    game = lake()
    assert len({game.reset(seed=seed)[0] for seed in range(50)}) > 45


@pytest.mark.parametrize("fields", [{}, {"size": 6, "max_turns": 10, "max_actions": 10}, {"actions_per_turn": 3}])
def test_the_oracle_solves_every_map_within_the_limits(fields: dict[str, float]) -> None:
    game = lake(**fields)
    for seed in range(300):
        game.reset(seed=seed)
        assert game.solvable
        route = game.route(game.player, game.goal)
        assert route is not None
        width = game.settings.actions_per_turn
        steps = play(game, [say(*route[i : i + width]) for i in range(0, len(route), width)])
        assert steps[-1][1:] == (1.0, True, False, Verdict.SOLVED)
        assert sum(reward for _, reward, *_ in steps) == 1.0


def test_limits_of_one_move_still_have_maps() -> None:
    game = lake(max_turns=1, max_actions=1)
    game.reset(seed=0)
    assert game.solvable


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
    assert (reward, terminated, info["outcome"].answer) == (1.0, True, "UR")


def test_moves_beyond_a_turn_or_an_episode_are_not_made() -> None:
    game = board("PFF/FFF/FFG", actions_per_turn=2, max_actions=3)
    game.step(say("right", "right", "down"))
    assert game.player == (0, 2)
    _, _, terminated, truncated, info = game.step(say("left", "left"))
    assert (terminated, truncated, info["outcome"].answer, game.player) == (False, True, "RRL", (0, 1))


def test_an_illegal_move_costs_is_told_and_the_episode_goes_on() -> None:
    game = board("PFF/FFF/FFG", actions_per_turn=2)
    text, reward, terminated, truncated, info = game.step(say("right", "jump"))
    assert text.startswith("Illegal move.\nP r1c2")
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


@given(st.lists(st.text() | st.text().map(lambda text: f"<answer>{text}</answer>"), min_size=6, max_size=6))
def test_any_text_is_a_verdict_and_not_a_crash(answers: list[str]) -> None:
    game = lake()
    first, _ = game.reset(seed=1)
    assert game.observation_space.contains(first)
    for text, reward, *_ in play(game, answers):
        assert game.observation_space.contains(text)
        assert reward <= 1.0
    assert game.sketch_key(answers[0]) is None or re.fullmatch(r"\d,\d", game.sketch_key(answers[0]) or "")


def test_moves_drawn_at_random_score_low() -> None:
    rng, game, solved = np.random.default_rng(0), lake(), 0
    for seed in range(300):
        game.reset(seed=seed)
        moves = rng.choice(["left", "up", "right", "down"], size=game.settings.max_turns)
        solved += play(game, [say(move) for move in moves])[-1][4] is Verdict.SOLVED
    assert solved / 300 < 0.3


def test_a_slip_goes_to_either_side_and_as_often_as_it_says() -> None:
    counts = {(0, 1): 0, (1, 2): 0, (2, 1): 0, (1, 0): 0}
    for seed in range(3000):
        game = board("FFF/FPF/FFG", slip=0.3)
        game.np_random = np.random.default_rng(seed)
        game.step(say("up"))
        counts[game.player] += 1
    shares = {cell: count / 3000 for cell, count in counts.items()}
    assert shares[(0, 1)] == pytest.approx(0.7, abs=0.03)
    assert shares[(1, 0)] == pytest.approx(0.15, abs=0.03)
    assert shares[(1, 2)] == pytest.approx(0.15, abs=0.03)
    assert shares[(2, 1)] == 0


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("via r2c3", "2,3"),
        (" Via row 2, col 3 please", "2,3"),
        ("row 2 column 3", "2,3"),
        ("via r0c1", None),
        ("via r5c1", None),
        ("via 2 3", None),
        ("car2cat3", None),
        ("", None),
        ("r" * 5000, None),
    ],
)
def test_sketch_keys(sketch: str, key: str | None) -> None:
    assert lake().sketch_key(sketch) == key


def test_a_hole_is_a_readable_sketch() -> None:
    game = board("PF/HG")
    assert game.sketch_key("via r2c1") == "2,1"
    assert game.way_points() == [(0, 1)]


def test_way_points_can_be_passed_on_the_way_to_the_goal() -> None:
    game = lake()
    for seed in range(50):
        game.reset(seed=seed)
        for cell in game.way_points():
            game.reset(seed=seed)
            route = game.route_via(cell)
            assert route is not None
            passed = []
            for move in route:
                game.step(say(move))
                passed.append(game.player)
            assert cell in passed
            assert passed[-1] == game.goal


def test_gymnasium_makes_it_and_finds_nothing_to_object_to() -> None:
    made = gymnasium.make("sesa/FrozenLake-v0", size=5, slip=0.1)
    text, info = made.reset(seed=4)
    assert (text, info) == lake(size=5, slip=0.1).reset(seed=4)
    assert len(made.step(say("left"))) == 5
    check_env(make_env(FrozenLakeSettings()), skip_render_check=True)


def test_a_demonstration_is_a_pure_function_of_its_seed() -> None:
    used = lake()
    used.reset(seed=1)
    before = used.player
    assert used.demonstrate(5, 0.3) == lake().demonstrate(5, 0.3)
    assert used.player == before


@pytest.mark.parametrize("fields", [{}, {"slip": 0.2, "actions_per_turn": 2, "size": 5}])
def test_demonstrations_replay_to_what_they_claim(fields: dict[str, float]) -> None:
    game, kinds = lake(**fields), dict.fromkeys(("plain", "guided", "sketches"), 0)
    visits = []
    for seed in range(400):
        conversation = game.demonstrate(seed, 0.5)
        first, _ = game.reset(seed=seed)
        way_points = game.way_points()
        assert [m.role for m in conversation[:2]] == ["system", "user"]
        assert all(m.trained == (m.role == "assistant") for m in conversation)
        said = [m.content for m in conversation if m.trained]
        shown = [m.content for m in conversation if m.role == "user"]
        if shown[0] == first + game.sketch_request(0):
            kinds["sketches"] += 1
            assert shown[1:] == [game.sketch_request(i) for i in range(1, len(said))]
            keys = [game.sketch_key(sketch) for sketch in said]
            assert len(set(keys)) == len(keys)
            assert set(keys) <= {f"{row + 1},{column + 1}" for row, column in way_points}
            continue
        wanted = game.sketch_key(shown[0].removeprefix(first))
        kinds["plain" if wanted is None else "guided"] += 1
        assert shown[0] == (first if wanted is None else first + game.guidance(shown[0].rsplit("\n", 1)[1]))
        passed, text = [], shown[0]
        for i, answer in enumerate(said):
            assert shown[i] == text
            text, reward, terminated, truncated, _ = game.step(answer)
            passed.append(f"{game.player[0] + 1},{game.player[1] + 1}")
            assert reward >= 0
            assert not (terminated or truncated) or i == len(said) - 1
        visits += [wanted in passed] if wanted else []
    assert min(kinds.values()) > 10
    if not game.settings.slip:
        assert np.mean(visits) > 0.9


def test_skill_makes_plain_play_careful() -> None:
    """Careful play looks at the cell ahead and wins; careless play names a move and mostly loses."""

    def solved(skill: float) -> float:
        game, wins = lake(), []
        for seed in range(600):
            conversation = game.demonstrate(seed, skill)
            first, _ = game.reset(seed=seed)
            if conversation[1].content == first:
                wins.append(play(game, [m.content for m in conversation if m.trained])[-1][4] is Verdict.SOLVED)
        return float(np.mean(wins))

    assert solved(1.0) == 1.0
    assert solved(0.0) < 0.4
