"""Path exploration: what is a path, what is a target, what is told, and what the script shows."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environments import PathExplorationSettings
from envs.base import BadEnvironment
from envs.demonstrations import demonstrate
from envs.path_exploration.env import PathExploration, coverage
from envs.path_exploration.script import PathExplorationScript
from envs.protocol import read_answer
from envs.survey import survey
from envs.trajectory import Verdict

GUESSES = {"max_turns": 4, "max_actions": 4}


def game(seed: int = 0, **fields: Any) -> PathExploration:
    """An episode that has begun."""
    env = PathExploration(PathExplorationSettings(**fields))
    env.reset(seed=seed)
    return env


def said(*paths: str) -> str:
    return f"<think>so</think><answer>{' || '.join(paths)}</answer>"


def misses(env: PathExploration) -> list[str]:
    """All paths that are no targets."""
    paths = (" / ".join(env.atlas.first.path(number)) for number in range(env.atlas.paths))
    return [path for path in paths if path not in env.targets]


def play(env: PathExploration, answers: Sequence[str]) -> list[tuple[str, float, bool, bool, Verdict, str]]:
    steps = []
    for answer in answers:
        text, reward, terminated, truncated, info = env.step(answer)
        steps.append((text, reward, terminated, truncated, info["outcome"].verdict, info["outcome"].answer))
        if terminated or truncated:
            break
    return steps


# --- rules and episodes ----------------------------------------------------------------------------------------------


def test_the_prompt_is_short_and_tells_what_there_is() -> None:
    env = game(depth=2, branching=3, targets=2)
    assert env.rules == (
        "2 of 9 paths are hidden targets: find one. A path is A / B, one name a level.\n"
        "A: Badorn, Dedorn, Fidorn.\n"
        "B: Keveth, Liveth, Moveth.\n"
        "Reply <think>...</think><answer>A / B</answer>."
    )
    assert env.reset(seed=4)[0] == "Guess a path."


def test_several_paths_a_turn_are_told() -> None:
    env = game(depth=2, actions_per_turn=3, max_actions=9, max_turns=3)
    assert env.rules.endswith("<answer>A / B || A / B</answer>. Up to 3 paths a turn.")
    assert env.reset(seed=0)[0] == "Guess a path.\n3 turns left."
    with pytest.raises(ValueError, match="actions_per_turn \\(4\\)"):
        PathExplorationSettings(actions_per_turn=4, max_actions=3)


def test_one_map_is_one_prompt_and_one_set_of_targets() -> None:
    env = game()
    episodes = {(env.reset(seed=seed)[0], env.targets) for seed in range(40)}
    assert len(episodes) == 1
    assert len(env.targets) == env.target_count == 20


def test_maps_are_told_and_shared_by_training_and_held_out_seeds() -> None:
    env = game(maps=3)
    seen: dict[str, set[frozenset[str]]] = {}
    for seed in range(60):
        first, _ = env.reset(seed=seed)
        assert first == f"Map {seed // 2 % 3}. Guess a path."
        seen.setdefault(first, set()).add(env.targets)
    assert [len(targets) for targets in seen.values()] == [1, 1, 1]
    assert len(set.union(*seen.values())) == 3


def test_names_are_told_where_they_are_few(tmp_path: Path) -> None:
    assert "D: " in game(depth=4, branching=50).rules
    assert "B: " not in game(depth=4, branching=51).rules
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"Alba": {"Birken": ["Corrow"]}, "Gorse": {"Elm": ["Fen"]}}))
    rules = game(names=str(file), targets=1).rules
    assert "A path is A / B / C, one name a level.\nA: Alba, Gorse.\nReply" in rules
    file.write_text(json.dumps([[f"n{n}" for n in range(201)]]))
    assert "n1" not in game(names=str(file)).rules


def test_a_target_solves_in_any_spelling() -> None:
    env = game()
    for target in sorted(env.targets):
        names = target.split(" / ")
        for text in (
            target,
            "/".join(names).upper(),
            " >  ".join(names).lower(),
            "\n-  ".join(names),
            " ->".join(names),
        ):
            env.reset(seed=0)
            assert play(env, [said(text)]) == [("You found a target.", 1.0, True, False, Verdict.SOLVED, target)]
            assert env.ceiling() == 1.0
            assert env.optimal_length() == 0


def test_a_miss_ends_a_game_of_one_guess() -> None:
    env = game()
    miss = misses(env)[7]
    assert play(env, [said(miss.lower())]) == [("No target found.", 0.0, True, False, Verdict.WRONG, miss)]
    assert (env.ceiling(), env.oracle()) == (0.0, None)
    assert env.step(said(env.hidden.drawn[0]))[:4] == ("It is over.", 0.0, True, False)


def test_more_guesses_go_on_after_a_miss_which_may_be_repeated() -> None:
    env = game(**GUESSES)
    miss, other = misses(env)[:2]
    target = env.hidden.drawn[3]
    steps = play(env, [said(miss), said(miss), said(other), said(target)])
    assert [step[0] for step in steps] == [
        "No target there.\n3 turns left.",
        "No target there.\n2 turns left.",
        "No target there.\n1 turn left.",
        "You found a target.",
    ]
    assert [step[1] for step in steps] == [0, 0, 0, 1]
    assert [step[4] for step in steps] == [Verdict.WRONG] * 3 + [Verdict.SOLVED]
    assert [step[5] for step in steps] == [miss, f"{miss} || {miss}", f"{miss} || {miss} || {other}", target]


def test_guesses_run_out() -> None:
    env = game(**GUESSES)
    steps = play(env, [said(miss) for miss in misses(env)[:9]])
    assert len(steps) == 4
    assert steps[-1][:5] == ("No target found.", 0.0, False, True, Verdict.WRONG)


def test_several_guesses_a_turn_stop_at_the_target() -> None:
    env = game(actions_per_turn=3, max_actions=3)
    miss, other = misses(env)[:2]
    assert play(env, [said(miss, env.hidden.drawn[2], other)])[0][1:] == (
        1.0, True, False, Verdict.SOLVED, env.hidden.drawn[2],
    )  # fmt: skip
    env.reset(seed=0)
    assert play(env, [said(miss, other)])[0][1:5] == (0.0, True, False, Verdict.WRONG)


@pytest.mark.parametrize(
    ("path", "complaint", "verdict"),
    [
        ("Badorn / Kevet / Rilusk", "no Kevet at level 2.", Verdict.WRONG),
        ("x / y / z", "no x at level 1.", Verdict.WRONG),
        ("Badorn / Keveth / Keveth", "no Keveth at level 3.", Verdict.WRONG),
        ("Badorn / Keveth / \u0416\u202e", "no ?? at level 3.", Verdict.WRONG),
        ("Badorn / Keveth", "a path is A / B / C.", Verdict.UNPARSABLE),
        ("Badorn / Keveth / Rilusk / Badorn", "a path is A / B / C.", Verdict.UNPARSABLE),
        ("Badorn // Rilusk", "a path is A / B / C.", Verdict.UNPARSABLE),
        ("hello", "a path is A / B / C.", Verdict.UNPARSABLE),
        ("Badorn-Keveth-Rilusk", "a path is A / B / C.", Verdict.UNPARSABLE),
    ],
)
def test_what_is_no_path_is_told(path: str, complaint: str, verdict: Verdict) -> None:
    env = game(**GUESSES)
    ((text, reward, terminated, truncated, found, answer),) = play(env, [said(path)])
    assert text.startswith("Illegal action ")
    assert text.endswith(f": {complaint}\n3 turns left.")
    assert (reward, terminated, truncated, found, answer) == (-0.1, False, False, verdict, "")


def test_a_complaint_does_not_repeat_an_older_miss() -> None:
    env = game(**GUESSES)
    play(env, [said(misses(env)[0])])
    assert "No target there." not in play(env, [said("x")])[0][0]


def test_in_a_tree_only_its_own_paths_exist(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"Alba": {"Birken": ["Corrow"]}, "Gorse": {"Elm": ["Fen"]}}))
    env = game(names=str(file), targets=2, **GUESSES)
    assert env.targets == {"Alba / Birken / Corrow", "Gorse / Elm / Fen"}
    assert "no Elm at level 2 in Alba." in play(env, [said("Alba / Elm / Fen")])[0][0]
    assert env.sketch_key("in gorse / elm") == "Gorse/Elm"
    assert env.sketch_key("in alba / elm") is None
    assert play(env, [said("gorse/elm/fen")])[0][4] is Verdict.SOLVED


def test_more_targets_than_paths_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps([["A", "B", "C"], ["D", "E", "F", "G"]]))
    with pytest.raises(BadEnvironment) as caught:
        game(names=str(file))
    assert str(caught.value) == f"env.targets 20: {file} has 12 paths: ask for fewer"
    assert game(names=str(file), targets=12).target_count == 12
    with pytest.raises(ValueError, match=r"targets \(20\) are more than the 8 paths"):
        PathExplorationSettings(depth=1)


def test_a_snapshot_is_small() -> None:
    env = game(targets=400)
    assert len(pickle.dumps(env.snapshot())) < 1000


# --- measures --------------------------------------------------------------------------------------------------------


def test_coverage_counts_different_targets() -> None:
    targets = frozenset("abcd")
    assert coverage([], targets) == 0
    assert coverage(["a", "a", "x", "y"], targets) == 0.25
    assert coverage(["a", "b", "x", "d", "c", "d"], targets) == 1


def test_answers_of_solved_episodes_count_the_coverage() -> None:
    env = game(**GUESSES)
    answers = []
    for target in env.hidden.drawn[:3]:
        for miss in misses(env)[:2]:
            env.reset(seed=0)
            answers.append(play(env, [said(miss), said(target)])[-1][5])
    assert coverage(answers, env.targets) == 3 / 20
    assert len(set(answers)) == 3


def test_the_best_player_always_wins_and_a_random_one_as_often_as_targets_are_frequent() -> None:
    found = survey(game(), 2000)
    assert (found.ceiling, found.oracle, found.exact) == (1.0, 1.0, True)
    assert found.lengths == {1: 2000}
    assert found.distinct_starts == 1
    assert found.random == pytest.approx(20 / 512, abs=0.012)


def test_random_answers_are_spread_over_all_paths() -> None:
    env, rng = game(depth=2, branching=3, targets=1), np.random.default_rng(0)
    counts = Counter(env.random_answer(rng) for _ in range(9000))
    assert len(counts) == 9
    assert all(abs(count - 1000) < 150 for count in counts.values())


# --- sketches and the script -----------------------------------------------------------------------------------------


def test_a_sketch_is_a_region() -> None:
    env = game()
    assert env.sketch_key("in badorn / KEVETH.") == "Badorn/Keveth"
    assert env.sketch_key("in Badorn, then Keveth") == env.sketch_key("in Badorn") == "Badorn"
    assert env.sketch_key("in Badorn / nowhere") is None
    assert env.sketch_key("in Nowhere / Keveth") is None
    assert env.sketch_request(0) == "\nFirst name a region, as: in A / B"
    assert env.sketch_request(5) == "Name another region."
    assert env.guidance("in Badorn") == "\nStay\nin Badorn"
    assert game(depth=1, branching=40).sketch_request(0).endswith("in A")


@pytest.mark.parametrize(
    "fields", [{}, {"depth": 1, "targets": 2}, {"depth": 2, "targets": 64}, {"depth": 6, "branching": 64}]
)
@pytest.mark.parametrize("seed", [0, 2])
def test_sketches_are_different_regions_and_mostly_hold_targets(fields: dict[str, int], seed: int) -> None:
    env, script = game(seed, maps=2, **fields), PathExplorationScript()
    sketches = script.sketches(env)
    keys = [env.sketch_key(sketch) for sketch in sketches]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    good = [any(f"{t} / ".startswith(f"{s[3:]} / ") for t in env.targets) for s in sketches]
    assert np.mean(good) > 0.5
    if not fields:
        assert len(sketches) >= 8
        assert not all(good)
    assert sketches == script.sketches(game(seed + 1, maps=2, **fields))


@given(st.integers(0, 511), st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_guided_play_stays_in_any_region(number: int, length: int, noise: int, careful: bool) -> None:
    env = game(**GUESSES)
    region = " / ".join(env.atlas.first.path(number)[:length])
    turns = PathExplorationScript().answers(env, f"in {region}", careful, np.random.default_rng(noise))
    holds = any(f"{target} / ".startswith(f"{region} / ") for target in env.targets)
    for turn in range(1, 5):
        thought, answer = next(turns)
        assert f"{answer} / ".startswith(f"{region} / ")
        assert answer.startswith(thought.removeprefix("in "))
        text, reward, terminated, truncated, _ = env.step(said(answer))
        assert not text.startswith(("Illegal", "Unreadable"))
        assert reward == float(careful and holds) or length == 3
        if terminated or truncated:
            assert env.solved or turn == 4
            break


def test_a_region_without_targets_is_searched_and_not_left() -> None:
    env = game(targets=1, **GUESSES)
    name = next(n for n in env.atlas.first.names if not env.hidden.drawn[0].startswith(n))
    turns = PathExplorationScript().answers(env, f"in {name}", True, np.random.default_rng(0))
    guesses = []
    for _ in range(4):
        guesses.append(next(turns)[1])
        env.step(said(guesses[-1]))
    assert all(guess.startswith(f"{name} / ") for guess in guesses)
    assert len(set(guesses)) == 4


def plain_guesses(seed: int, careful: bool, count: int, **fields: Any) -> tuple[PathExploration, list[str]]:
    env, rng = game(seed, **fields), np.random.default_rng(1)
    return env, [next(PathExplorationScript().answers(env, None, careful, rng))[1] for _ in range(count)]


def test_careful_plain_play_finds_its_favourite_targets() -> None:
    env, guesses = plain_guesses(0, True, 4000)
    counts = Counter(guesses)
    assert set(counts) == env.targets
    assert counts.most_common(1)[0][1] / 4000 == pytest.approx(0.477, abs=0.03)
    assert sum(count for _, count in counts.most_common(5)) / 4000 == pytest.approx(0.767, abs=0.03)


def test_careless_plain_play_misses_and_leaves_no_path_without_a_chance() -> None:
    env, guesses = plain_guesses(0, False, 30_000)
    counts = Counter(guesses)
    assert not env.targets & set(counts)
    assert len(counts) == 512 - 20
    assert sum(count for _, count in counts.most_common(5)) / 30_000 > 0.5


def test_favourites_differ_between_maps() -> None:
    for careful in (True, False):
        favourites = {
            Counter(plain_guesses(seed, careful, 200, maps=4)[1]).most_common(1)[0][0] for seed in (0, 2, 4, 6)
        }
        assert len(favourites) == 4


def test_careless_play_still_plays_where_every_path_is_a_target() -> None:
    env, guesses = plain_guesses(0, False, 20, depth=2, targets=64)
    assert set(guesses) <= env.targets


def test_skill_is_the_success_of_plain_demonstrations() -> None:
    env, script = game(), PathExplorationScript()
    wins, paths = [], set()
    for seed in range(3000):
        conversation = demonstrate(env, script, seed, 0.3)
        if conversation[1].content == "Guess a path.":
            wins.append("<answer>" in conversation[2].content and env.solved)
            paths.add(conversation[2].content)
    assert np.mean(wins) == pytest.approx(0.3, abs=0.05)
    assert len(paths) > 150


def test_lists_of_solutions_are_of_different_paths_and_as_long_as_asked_for() -> None:
    env, script = game(), PathExplorationScript()
    lists = [
        [message.content for message in conversation if message.trained]
        for seed in range(300)
        if (conversation := demonstrate(env, script, seed, 0.3, list_share=0.2, list_length=12))[3:]
        and conversation[3].content == "Another one."
    ]
    assert 0.15 < len(lists) / 300 < 0.25
    assert {len(said) for said in lists} == {12}
    assert all(len(set(said)) == len(said) for said in lists)
    found = [sum(read_answer(answer, "answer") in env.targets for answer in said) for said in lists]
    assert 1 < np.mean(found) < 6  # careful guesses are favourites, of which a list holds each once


def test_demonstrations_fit_a_small_context() -> None:
    env = game()
    conversations = [demonstrate(env, PathExplorationScript(), seed, 0.3, 0.2) for seed in range(200)]
    assert max(sum(len(m.content) for m in c) for c in conversations) < 1000
