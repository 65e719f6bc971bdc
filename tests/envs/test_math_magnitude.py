"""Numbers of Math nobody can write down: refused as answers, earning no more than a wrong one, and as references."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environments import MathSettings
from envs.base import BadEnvironment
from envs.math.env import Math
from envs.math.magnitude import is_too_large
from envs.trajectory import Verdict

TOO_LARGE = [
    "9^{9^{9}}",
    "9^{9^9}",
    "10^{10^{10}}",
    "5+10^{ 10^{ 10 } }",
    "x^{10^{10}}",
    "((10!)!)!",
    "10!!",
    "100000!",
    "\\frac{1}{100000!}",
    "(10^5)!",
    "100,000!",
    "2^{10001}",
    "2^{-100000000}",
    "(1/2)^{1000000}",
    "0.5^{10001}",
    "2^{99999999999+1}",
    "2^{\\frac{10^{10}}{3}}",
    "(2^{9999})^{9999}",
    "((2^{999})^{999})^{999}",
    "(9999!)^{9999}",
    "9" * 900 + "!",
]
FINE = [
    "72000",
    "2020!",
    "10000!",
    "5!!",
    "n!",
    "(n+100000)!",
    "2^{2006}",
    "2^{10000}",
    "2^{2^{10}}",
    "x^{2005}",
    "x^{n^{2}}",
    "e^{-20000t}",
    "2^{20000x}",
    "(x+1)^{5000}",
    "90^\\circ 20000",
    "6.02 \\times 10^{23}",
    "x^{0.00001}",
    "\\frac{1}{2^{100}}",
    "x != 200000",
    "(1,2000000)",
    "0^0",
    "0!",
    "}}^^!!",
    "",
]


@pytest.mark.parametrize("formula", TOO_LARGE)
def test_numbers_nobody_can_write_down(formula: str) -> None:
    assert is_too_large(formula)


@pytest.mark.parametrize("formula", FINE)
def test_formulas_the_library_can_be_asked(formula: str) -> None:
    assert not is_too_large(formula)


@given(st.text() | st.text("0123456789.,^!(){}[]+-x\\frac ", max_size=200))
def test_any_text_is_told(text: str) -> None:
    assert is_too_large(text) in (True, False)


@pytest.mark.parametrize("text", ["2^" * 500, "(2^" * 300 + "9" * 100, "5" + "!" * 999, "1,111" * 200, "9" * 1000])
def test_it_is_told_at_once(text: str) -> None:
    began = time.perf_counter()
    is_too_large(text)
    assert time.perf_counter() - began < 0.1


def data(folder: Path, answer: str) -> str:
    file = folder / "data.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": answer}) + "\n")
    return str(file)


def test_such_an_answer_is_unreadable_at_once(tmp_path: Path) -> None:
    env = Math(MathSettings(data=data(tmp_path, "x/7"), max_turns=2, max_actions=2))
    env.reset(seed=0)
    began = time.perf_counter()
    text, reward, _, _, info = env.step("<answer>9^{9^{9}}</answer>")
    assert time.perf_counter() - began < 0.5
    assert text == "Illegal action 9^{9^{9}}: its powers or factorials are too large.\n1 turn left."
    assert (reward, info["outcome"].verdict) == (env.settings.format_penalty, Verdict.UNPARSABLE)


@pytest.mark.parametrize("answer", ["10^{10^{10}}", "#### ((10!)!)!", "It is $\\boxed{100000!}$."])
def test_such_a_reference_is_refused_with_its_place(answer: str, tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match=r"data\.jsonl:1: the answer .* powers or factorials are too large"):
        Math(MathSettings(data=data(tmp_path, answer)))
