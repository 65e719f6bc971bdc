"""Math as an episode: reading an answer, verdicts and rewards, tries, sketches, and scripted play."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.environments import MathSettings
from envs.base import Outcome
from envs.demonstrations import demonstrate
from envs.math import grader, grading
from envs.math.env import MOST_KEY, Math
from envs.math.grading import stop_graders
from envs.math.script import METHODS, MathScript
from envs.registry import make_env, make_script
from envs.trajectory import Verdict


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A question whose answer is 7/2, with a worked solution."""
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"question": "Half of 7?", "answer": "7 / 2 is 3.5. #### \\frac{7}{2}"}) + "\n")
    return file


@pytest.fixture
def many(tmp_path: Path) -> Path:
    file = tmp_path / "many.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1} #### {i + 1}"} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def made(file: Path, **fields: Any) -> Math:
    env = Math(MathSettings(data=str(file), **fields))
    env.reset(seed=0)
    return env


def said(env: Math, answer: str) -> tuple[str, float, bool, bool, Outcome]:
    text, reward, terminated, truncated, info = env.step(answer)
    return text, reward, terminated, truncated, info["outcome"]


# --- texts and verdicts ----------------------------------------------------------------------------------------------


def test_the_first_message_is_the_question(data: Path) -> None:
    env = made(data)
    assert env.reset(seed=0)[0] == env.render() == "Half of 7?"
    assert env.rules == (
        "Solve the problem step by step. "
        "Reply <think>...</think><answer>42</answer>: the final answer alone in the tag."
    )


@pytest.mark.parametrize(
    "answer",
    [
        "<think>so</think><answer>3.5</answer>",
        "<answer> $\\frac{7}{2}$ </answer>",
        "<answer>\\boxed{7/2}.</answer>",
        "<answer>3</answer> no, <answer>3 1/2</answer>",
        "So it is \\boxed{\\frac72}.",
        "\\boxed{3} or rather \\boxed{3.50}",
        "<answer>x = 7/2</answer>",
    ],
)
def test_right_answers(answer: str, data: Path) -> None:
    text, reward, terminated, truncated, outcome = said(made(data), answer)
    assert (text, reward, terminated, truncated, outcome.verdict) == ("Right.", 1.0, True, False, Verdict.SOLVED)


@pytest.mark.parametrize(
    ("answer", "canonical"),
    [
        ("<answer>3</answer>", "3"),
        ("<answer>3.50001</answer>", "350001/100000"),
        ("<answer>\\frac{</answer>", "\\frac{"),
        ("<answer>No Idea</answer>", "no idea"),
        ("<answer>7/2 or 3</answer>", "7/2 or 3"),
        ("<answer>3</answer> \\boxed{7/2}", "3"),
        ("\\boxed{1,000}", "1000"),
        ("<answer>1 || 7/2</answer>", "1||7/2"),
        (f"<answer>{'y' * 999}</answer>", "y" * 200),
    ],
)
def test_wrong_answers(answer: str, canonical: str, data: Path) -> None:
    text, reward, terminated, truncated, outcome = said(made(data), answer)
    assert (text, reward, terminated, truncated) == ("Wrong.", 0.0, True, False)
    assert outcome == Outcome(Verdict.WRONG, canonical)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("7/2", "Unreadable answer."),
        ("<answer></answer> \\boxed{7/2}", "Unreadable answer."),
        ("\\boxed{7/2", "Unreadable answer."),
        ("\\boxed{ }", "Unreadable answer."),
        ("<answer>$$</answer>", "Illegal action $$: there is no answer in it."),
        (f"<answer>{'1' * 1001}</answer>", f"Illegal action {'1' * 37}...: an answer has at most 1000 characters."),
        (f"<answer>{'(' * 30}</answer>", f"Illegal action {'(' * 30}: its brackets are nested too deep."),
    ],
)
def test_unreadable_answers(answer: str, words: str, data: Path) -> None:
    env = made(data)
    text, reward, _, _, outcome = said(env, answer)
    assert text == f"{words}\nIt is over."
    assert reward == env.settings.format_penalty
    assert outcome == Outcome(Verdict.UNPARSABLE, "")


def test_several_tries(data: Path) -> None:
    env = made(data, max_turns=3, max_actions=3)
    assert env.reset(seed=0)[0] == "Half of 7?\n3 turns left."
    assert said(env, "<answer>3</answer>")[:4] == ("Wrong.\n2 turns left.", 0.0, False, False)
    snapshot = env.snapshot()
    text, reward, *_ = said(env, "what?")
    assert (text, reward) == ("Unreadable answer.\n1 turn left.", env.settings.format_penalty)
    text, reward, terminated, truncated, outcome = said(env, "<answer>7/2</answer>")
    assert (text, reward, terminated, truncated) == ("Right.", 1.0, True, False)
    assert outcome == Outcome(Verdict.SOLVED, "7/2")
    assert (env.ceiling(), env.optimal_length()) == (1.0, 0)
    env.restore(snapshot)
    said(env, "<answer>4</answer>")
    text, _, terminated, truncated, outcome = said(env, "<answer>5</answer>")
    assert (text, terminated, truncated, outcome) == ("Wrong.", False, True, Outcome(Verdict.WRONG, "5"))
    assert (env.ceiling(), env.oracle()) == (0.0, None)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text() | st.text("0123456789+-*/^(){}[]\\frac,.=xe", max_size=24))
def test_any_text_gets_a_verdict(text: str, data: Path) -> None:
    env = made(data, grade_timeout_s=0.3)
    for answer in (text, f"<answer>{text}</answer>", f"\\boxed{{{text}}}"):
        env.reset(seed=0)
        _, reward, terminated, truncated, outcome = said(env, answer)
        assert terminated or truncated
        assert reward in (env.settings.format_penalty, 0.0, 1.0)
        assert len(outcome.answer) <= 200
        assert outcome.verdict is not Verdict.FAILED or "grade_timeout_s" in outcome.cause, outcome


# --- a grader that fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def sleepy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "sleepy.py").write_text("import time\nprint('{\"ready\": true}', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(grading, "_graders", {})
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(tmp_path / "sleepy.py")))
    yield
    stop_graders()


def test_a_grader_that_hangs_is_no_wrong_answer(sleepy: None, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = made(data, grade_timeout_s=1, max_turns=3, max_actions=3)
    text, reward, terminated, _, outcome = said(env, "<answer>x</answer>")
    assert (text, reward, terminated) == ("The answer could not be graded.", 0.0, True)
    assert outcome.verdict is Verdict.FAILED
    assert outcome.cause == "grading an answer took longer than 1 s (env.grade_timeout_s)"
    assert (env.ceiling(), env.oracle()) == (0.0, None)
    env.reset(seed=0)
    assert said(env, "<answer>3.5</answer>")[4].verdict is Verdict.SOLVED


# --- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sketch", "key"),
    [
        ("Work backwards.", "backwards work"),
        ("We will use the method of working it backwards", "backwards working"),
        ("backwards: WORK!", "backwards work"),
        ("Split it into 2 parts, then add", "2 add parts split"),
        ("the of it", None),
        ("...", None),
        ("", None),
        ("\u0421\u043b\u043e\u0436\u0438\u0442\u044c", "\u0441\u043b\u043e\u0436\u0438\u0442\u044c"),
    ],
)
def test_sketch_keys(sketch: str, key: str | None, data: Path) -> None:
    assert made(data).sketch_key(sketch) == key


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["add", "split", "guess", "the", "then", "square"])), seed=st.randoms())
def test_the_order_of_words_makes_no_other_sketch(words: list[str], seed: Any, data: Path) -> None:
    env = made(data)
    other = list(words)
    seed.shuffle(other)
    assert env.sketch_key(" ".join(words)) == env.sketch_key(", ".join(other).upper())


def test_a_long_sketch_has_a_short_key(data: Path) -> None:
    key = made(data).sketch_key(" ".join(f"word{i}" for i in range(10**5)))
    assert key is not None
    assert len(key) <= MOST_KEY


# --- settings and scripted play --------------------------------------------------------------------------------------


def test_gymnasium_makes_it_from_keywords(data: Path, many: Path) -> None:
    fields: dict[str, Any] = {
        "data": str(many),
        "held_out_data": str(data),
        "grade_timeout_s": 2.0,
        "grade_memory_mib": 512,
    }
    env = gymnasium.make("sesa/Math-v0", max_turns=2, max_actions=2, question_column="QUESTION", **fields)
    assert env.reset(seed=1)[0] == "Half of 7?\n2 turns left."


def test_another_records_answer_is_from_the_same_part(many: Path) -> None:
    env, rng = made(many), np.random.default_rng(0)
    for seed in range(200):
        env.reset(seed=seed)
        answer = int(env.random_answer(rng))
        assert answer != int(env.state.record.answer)
        assert (answer % 10 == 0) == (seed % 2 == 1)


def test_one_record_alone_has_no_other(data: Path) -> None:
    assert made(data).random_answer(np.random.default_rng(0)) == "\\frac{7}{2}"


def test_scripted_play_follows_what_it_is_given(many: Path) -> None:
    env = made(many)
    script, rng = MathScript(), np.random.default_rng(0)
    answer = int(env.state.record.answer)
    worked = f"{answer - 1} + 1 = {answer}"
    assert next(script.answers(env, None, True, rng)) == (worked, f"{answer}")
    assert next(script.answers(env, METHODS[1], True, rng)) == (f"Work backwards. {worked}", f"{answer}")
    thought, other = next(script.answers(env, None, False, rng))
    assert thought == f"It is {other}."
    assert other != f"{answer}"


def test_demonstrations_are_short_and_of_training_records(many: Path) -> None:
    settings = MathSettings(data=str(many))
    env, script = make_env(settings), make_script(settings)
    for seed in range((1 << 48), (1 << 48) + 300):
        conversation = demonstrate(env, script, seed, 0.3)
        assert int(conversation[1].content.partition(" ")[0]) % 10 != 9
        assert sum(len(message.content) for message in conversation) < 500
