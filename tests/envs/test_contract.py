"""What holds for every environment: seeds, snapshots, oracles, floors, hostile text, demonstrations."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.base import Outcome, TextEnv
from envs.demonstrations import demonstrate
from envs.protocol import form, spoken
from envs.registry import gymnasium_id, make_env, make_script
from envs.trajectory import Verdict
from tests.envs.cases import CASES, MONSTERS, env_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
Step = tuple[str, float, bool, bool, dict[str, Any]]
# Of the episodes of some seeds, wherever they are drawn. A change that moves one of these changes what every run trains
# on and is measured on: figures from before it cannot be compared with later ones.
DIGESTS = {
    "path_exploration": "89e3cb23e9c73c92",
    "path_exploration-guesses": "9f3538c3b0ce91b6",
    "frozen_lake": "b19b9c3f3fa2ba95",
    "frozen_lake-slippery": "b73bc4a3ca82666a",
    "sokoban": "0a3a280c9f731c29",
    "sokoban-two-boxes": "6756bed4c151dec9",
    "countdown": "b9bfe5f84ac414cc",
    "countdown-tries": "936fbcaff30a483c",
    "sudoku": "0e184b6f5acf8f30",
    "sudoku-9": "41d1e4556f7a10e5",
    "sudoku-seen": "4fa3ee2167dbed5a",
    "math": "eb0aa1e55910a0f2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(params=CASES)
def env(request: pytest.FixtureRequest, folder: Path) -> TextEnv:
    return env_of(request.param, folder)


def say(env: TextEnv, answer: str) -> str:
    return spoken(env.settings, "so", answer)


def random_answers(env: TextEnv, seed: int, count: int) -> list[str]:
    """Of an environment that has been reset; good and bad ones."""
    rng = np.random.default_rng(seed)
    answers = [say(env, env.random_answer(rng)) for _ in range(count)]
    return [a if rng.random() < 0.8 else "what?" for a in answers]


def play(env: TextEnv, answers: Sequence[str]) -> list[Step]:
    """The steps of an episode, to its end or to the last answer."""
    steps: list[Step] = []
    for answer in answers:
        steps.append(env.step(answer))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def play_oracle(env: TextEnv) -> Outcome:
    """Follow the oracle to the end, which it must reach without a complaint."""
    while True:
        answer = env.oracle()
        assert answer is not None
        text, _, terminated, truncated, info = env.step(say(env, answer))
        assert not text.startswith(("Illegal", "Unreadable")), f"{answer}: {text}"
        if terminated or truncated:
            outcome: Outcome = info["outcome"]
            return outcome


def test_only_path_exploration_has_right_answers_in_common(env: TextEnv) -> None:
    assert (env.target_count is not None) == (env.settings.name == "path_exploration")  # type: ignore[attr-defined]


def test_same_seed_same_episode_whatever_was_played_before(env: TextEnv) -> None:
    used = make_env(env.settings)  # type: ignore[arg-type]
    used.reset(seed=3)
    play(used, random_answers(used, 0, 4))
    for seed in (7, 8, 2**40 + 1):
        assert env.reset(seed=seed) == used.reset(seed=seed)
        answers = random_answers(env, seed, env.settings.max_turns)
        assert answers == random_answers(used, seed, env.settings.max_turns)
        assert play(env, answers) == play(used, answers)


def digest(env: TextEnv) -> str:
    """Of some episodes: their first messages and what random play comes to."""
    sha = hashlib.sha256()
    for seed in range(12):
        first, _ = env.reset(seed=seed)
        sha.update(first.encode())
        sha.update(repr(play(env, random_answers(env, seed, 3))).encode())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_episode_on_every_machine(case: str, folder: Path) -> None:
    assert digest(env_of(case, folder)) == DIGESTS[case]


@pytest.mark.parametrize("case", [case for case in CASES if "-" not in case])
def test_same_seed_same_episode_in_another_process(case: str, folder: Path) -> None:
    program = (
        "from pathlib import Path; from tests.envs.cases import env_of; from tests.envs.test_contract import digest\n"
        f"print(digest(env_of({case!r}, Path({str(folder)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == DIGESTS[case]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**48), noise=st.integers(0, 2**16), cut=st.integers(0, 5))
def test_an_episode_goes_on_from_a_snapshot_as_it_did(case: str, folder: Path, seed: int, noise: int, cut: int) -> None:
    env, other = env_of(case, folder), env_of(case, folder)
    env.reset(seed=seed)
    answers = random_answers(env, noise, env.settings.max_turns)
    before = play(env, answers[:cut])
    snapshot = pickle.loads(pickle.dumps(env.snapshot()))
    ahead = play(env, answers[len(before) :])
    env.restore(snapshot)
    assert play(env, answers[len(before) :]) == ahead
    other.restore(snapshot)
    assert play(other, answers[len(before) :]) == ahead
    # Replaying from the seed is the other way to get there.
    other.reset(seed=seed)
    assert play(other, answers) == before + ahead or (before and before[-1][2] | before[-1][3])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text() | st.text().map(lambda t: f"<answer>{t}</answer>"), min_size=1, max_size=8))
def test_any_text_is_a_verdict_and_not_a_crash(env: TextEnv, texts: list[str]) -> None:
    env.reset(seed=1)
    for text, reward, _, _, info in play(env, texts):
        assert env.observation_space.contains(text)
        assert np.isfinite(reward)
        assert info["outcome"].verdict in (Verdict.WRONG, Verdict.UNPARSABLE, Verdict.SOLVED)
    assert isinstance(env.sketch_key(texts[0]), str | None)


@pytest.mark.parametrize("monster", MONSTERS, ids=lambda text: text[:24])
def test_hostile_text_is_answered_at_once(env: TextEnv, monster: str) -> None:
    env.reset(seed=2)
    began = time.perf_counter()
    text, reward, _, _, info = env.step(monster)
    env.sketch_key(monster)
    assert time.perf_counter() - began < 2
    assert env.observation_space.contains(text)
    assert info["outcome"].verdict is not Verdict.SOLVED
    assert len(text) < 2000
    assert reward <= 0


def test_the_oracle_solves_what_can_be_solved_as_often_as_the_ceiling_says(env: TextEnv) -> None:
    ceilings, solved = [], []
    for seed in range(60):
        first, _ = env.reset(seed=seed)
        assert env.observation_space.contains(first)
        ceilings.append(env.ceiling())
        if ceilings[-1] == 0:
            assert env.oracle() is None
            continue
        length = env.optimal_length()
        assert length is not None
        assert length <= env.settings.action_limit
        sure = ceilings[-1] == 1
        outcome = play_oracle(env) if sure else None
        if outcome is not None:
            assert outcome.verdict is Verdict.SOLVED
        solved.append(sure)
    assert np.mean(ceilings) > 0.5


def test_nothing_is_left_to_hope_for_once_it_is_over(env: TextEnv) -> None:
    for seed in range(20):
        env.reset(seed=seed)
        steps = play(env, random_answers(env, seed, env.settings.max_turns))
        if not (steps[-1][2] or steps[-1][3]):
            continue
        assert (env.ceiling(), env.oracle()) == (float(env.solved), None)
        assert not env.solved or env.optimal_length() == 0
        assert env.step("more")[:2] == ("It is over.", 0.0)
        assert env.cut() == 0.0


def test_an_episode_can_be_cut_short(env: TextEnv) -> None:
    env.reset(seed=1)
    assert env.cut() >= 0
    text, reward, terminated, truncated, _ = env.step(say(env, env.random_answer(np.random.default_rng(0))))
    assert (text, reward, terminated or truncated) == ("It is over.", 0.0, True)


def test_actions_beyond_a_turn_are_told_and_not_made(env: TextEnv) -> None:
    if env.one_action_an_answer:
        return
    env.reset(seed=1)
    most = env.settings.actions_per_turn
    answer = env.random_answer(np.random.default_rng(0)).split(" || ")[0]
    text, reward, *_ = env.step(say(env, " || ".join([answer] * (most + 2))))
    assert len(env.done) <= most
    assert env.solved or env.lost or text.startswith(f"Only the first {most} of {most + 2} actions were made.")
    assert reward > env.settings.format_penalty - 1


def test_a_reset_without_a_seed_can_be_repeated(env: TextEnv) -> None:
    first, _ = env.reset()
    assert env.reset(seed=env.seed)[0] == first
    seed, snapshot = env.seed, env.snapshot()
    assert env.reset()[0] != first or env.seed != seed
    env.restore(snapshot)
    assert env.seed == seed


def test_random_play_is_legal_and_mostly_loses(env: TextEnv) -> None:
    verdicts = []
    for seed in range(100):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        steps = play(env, [say(env, env.random_answer(rng)) for _ in range(env.settings.max_turns)])
        verdicts.append(steps[-1][4]["outcome"].verdict)
    assert set(verdicts) <= {Verdict.SOLVED, Verdict.WRONG}
    assert np.mean([verdict is Verdict.SOLVED for verdict in verdicts]) < 0.5


def test_the_first_action_that_cannot_be_made_is_told_and_costs(env: TextEnv) -> None:
    env.reset(seed=5)
    text, reward, _, _, info = env.step(say(env, "fly\u2028to the moon " * 3))
    if info["outcome"].verdict is Verdict.UNPARSABLE:
        assert text.startswith("Illegal action fly?to the moon")
        assert reward == env.settings.format_penalty
    text, reward, _, _, _ = make_env_at(env, 5).step("no tags at all")
    assert text.startswith("Unreadable answer.")
    assert reward == env.settings.format_penalty


def make_env_at(env: TextEnv, seed: int) -> TextEnv:
    env.reset(seed=seed)
    return env


def test_gymnasium_finds_nothing_to_object_to(env: TextEnv) -> None:
    check_env(env, skip_render_check=True)
    name: str = env.settings.name  # type: ignore[attr-defined]
    made = gymnasium.make(gymnasium_id(name), **env.settings.model_dump(exclude={"name"}))
    assert made.reset(seed=4) == env.reset(seed=4)
    assert env.render()
    assert made.unwrapped.render() == env.render()


@pytest.mark.parametrize("case", [case for case in CASES if "-" not in case])
@pytest.mark.parametrize("tags", [{"think_tag": None, "answer_tag": "do"}, {"think_tag": "plan", "answer_tag": "go"}])
def test_tags_are_a_setting(case: str, tags: dict[str, str | None], folder: Path) -> None:
    env = make_env(settings_of(case, folder).model_copy(update=tags))
    env.reset(seed=1)
    assert form(env.settings, "X").partition("X")[0] in env.rules
    assert ("<plan>" in env.rules) == (tags["think_tag"] == "plan")
    answer = env.oracle()
    assert answer is not None
    assert env.step(f"<answer>{answer}</answer>")[4]["outcome"].verdict is Verdict.UNPARSABLE
    env.reset(seed=1)
    assert play_oracle(env).verdict is Verdict.SOLVED


def test_a_demonstration_is_a_pure_function_of_its_seed(env: TextEnv, folder: Path) -> None:
    script = make_script(env.settings)  # type: ignore[arg-type]
    env.reset(seed=1)
    other = make_env(env.settings)  # type: ignore[arg-type]
    assert demonstrate(env, script, 5, 0.3) == demonstrate(other, script, 5, 0.3)


def test_demonstrations_replay_to_what_they_claim(env: TextEnv) -> None:
    script = make_script(env.settings)  # type: ignore[arg-type]
    plain = guided = lists = 0
    careful_wins: list[bool] = []
    careless_wins: list[bool] = []
    for seed in range(150):
        for skill, wins in ((1.0, careful_wins), (0.0, careless_wins)):
            conversation = demonstrate(env, script, seed, skill, list_share=0.1)
            first, _ = env.reset(seed=seed)
            offered = script.sketches(env)
            keys = {env.sketch_key(sketch) for sketch in offered}
            assert None not in keys
            assert len(keys) == len(offered)
            assert all(m.trained == (m.role == "assistant") for m in conversation)
            assert [m.role for m in conversation] == ["system", *["user", "assistant"] * (len(conversation) // 2)]
            said = [m.content for m in conversation if m.trained]
            asked = [m.content for m in conversation if m.role == "user"]
            if asked[0] == first + env.sketch_request(0):
                lists += 1
                assert asked[1:] == [env.sketch_request(i) for i in range(1, len(said))]
                assert set(said) <= set(offered)
                assert len(set(said)) == len(said)
                continue
            if asked[1:2] == [env.another_attempt()]:
                assert asked == [first, *[env.another_attempt()] * (len(said) - 1)]
                assert len(set(said)) == len(said)
                for answer in said:
                    env.reset(seed=seed)
                    assert not env.step(answer)[0].startswith(("Illegal", "Unreadable"))
                continue
            plain += asked[0] == first
            guided += asked[0] in {first + env.guidance(sketch) for sketch in offered}
            assert asked[0].startswith(first)
            steps = play(env, said)
            assert [step[0] for step in steps[: len(asked) - 1]] == asked[1:]
            assert len(steps) == len(said)
            assert all(not step[0].startswith(("Illegal", "Unreadable")) for step in steps)
            if asked[0] == first:
                wins.append(steps[-1][4]["outcome"].verdict is Verdict.SOLVED)
    assert min(plain, guided, lists) > 3
    assert np.mean(careful_wins) > np.mean(careless_wins)
