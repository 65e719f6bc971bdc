"""Answers of Math as texts: what is read out of them, which are equal and which are not."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environments import MathSettings
from envs.math import grading
from envs.math.answers import (
    DEEPEST_BRACKETS,
    MOST_CHARACTERS,
    checked,
    cleaned,
    final_answer,
    last_boxed,
    normal,
    plain_number,
)
from envs.math.grader_process import balanced
from envs.math.grading import is_right
from envs.protocol import Unreadable

SETTINGS = MathSettings(data="unused", grade_timeout_s=20)


def right(reference: str, answer: str) -> bool:
    return is_right(checked(reference), checked(answer), SETTINGS)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("so \\boxed{72}.", "72"),
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{a \\boxed{b}}", "b"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{", None),
        ("\\boxed", None),
        ("\\\\boxed{1}", None),
        ("}{\\boxed{5}}}", "5"),
        ("72", None),
    ],
)
def test_the_last_balanced_box_counts(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@pytest.mark.parametrize(
    ("field", "answer"),
    [
        ("a #### b\n#### 1,234", "1,234"),
        ("#### (1,2)", "(1,2)"),
        ("####", ""),
        ("so $\\boxed{\\frac12}$.", "\\frac12"),
        ("\\boxed{3} #### 4", "4"),
        (" 12 ", "12"),
        ("see \\boxed{3", "see \\boxed{3"),
    ],
)
def test_the_final_answer_of_a_field(field: str, answer: str) -> None:
    assert final_answer(field) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", "72"),
        ("-72", "-72"),
        ("\u2212 72", "-72"),
        ("+3", "3"),
        ("0072", "72"),
        ("72.", "72"),
        ("72.50", "72.5"),
        (".5", "1/2"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("1,\\!234", "1234"),
        ("$1,234.50", "2469/2"),
        ("12 dollars", "12"),
        ("3/6", "1/2"),
        ("-3 / 6", "-1/2"),
        ("\\frac{3}{6}", "1/2"),
        ("\\dfrac36", "1/2"),
        ("1 1/3", "4/3"),
        ("-1\\tfrac{1}{3}", None),
        ("-1 \\frac{1}{3}", "-4/3"),
        ("1.5/2", "3/4"),
        ("1/0", None),
        ("1,2", None),
        ("1,23", None),
        ("1234,567", None),
        ("1e3", None),
        ("--1", None),
        ("1 2", None),
        ("1 234/5", "239/5"),
        ("\u0663", None),
        ("\u00bd", None),
        ("x", None),
        ("", None),
    ],
)
def test_plain_numbers(text: str, value: str | None) -> None:
    assert plain_number(cleaned(text)) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("0.50", "1/2"),
        ("$\\frac{2}{4}$", "1/2"),
        ("\\boxed{ X + 1 }", "x+1"),
        ("\\text{No Solution.}", "no solution."),
        ("No  solution.", "no solution"),
        ("\\left( 3, \\dfrac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("...", "..."),
    ],
)
def test_normal_forms(text: str, form: str) -> None:
    assert normal(cleaned(text)) == form


@pytest.mark.parametrize("text", ["", " ", "$", "$$", "\\boxed{}", ".", "\\left.", "\\!"])
def test_texts_without_an_answer(text: str) -> None:
    with pytest.raises(Unreadable, match="no answer"):
        checked(text)


def test_long_and_deep_texts_are_refused_before_any_grading() -> None:
    assert checked("1" * MOST_CHARACTERS)
    with pytest.raises(Unreadable, match="at most 1000"):
        checked("1" * (MOST_CHARACTERS + 1))
    assert checked("(" * DEEPEST_BRACKETS + "1" + ")" * DEEPEST_BRACKETS)
    for bracket in "([{":
        with pytest.raises(Unreadable, match="too deep"):
            checked(bracket * (DEEPEST_BRACKETS + 1))
    assert checked("()" * 400)


@given(st.text() | st.text("\\{}$ boxed.,", max_size=200))
def test_reading_never_raises_and_normal_forms_are_stable(text: str) -> None:
    said = cleaned(text)
    form = normal(said)
    plain_number(said)
    final_answer(text)
    assert normal(form) == form or "\\" in form
    assert balanced(text) in (True, False)


@given(st.fractions())
def test_numbers_are_read_back(value: Fraction) -> None:
    assert plain_number(str(value)) == value
    assert normal(str(value)) == str(value)
    assert plain_number(f"\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}") == abs(value)


@given(st.integers())
def test_whole_numbers_are_read_back_with_and_without_commas(value: int) -> None:
    assert plain_number(f"{value:,}") == plain_number(f"{value}") == value


@pytest.mark.parametrize("text", ["\\boxed{" * 100_000, "\\boxed" + " " * 10**6, "{}" * 500_000, "\\boxed{}" * 100_000])
def test_boxes_are_found_in_linear_time(text: str) -> None:
    began = time.perf_counter()
    last_boxed(text)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "text", ["1," * 500, "1,111" * 200, "1" * 1000, "1 " * 500, "\u221a(" * 300, " " * 999 + "a", "\\text{" * 160]
)
def test_normal_forms_are_found_at_once(text: str) -> None:
    began = time.perf_counter()
    said = cleaned(text[:MOST_CHARACTERS])
    normal(said)
    plain_number(said)
    assert time.perf_counter() - began < 0.5


# --- equivalence -----------------------------------------------------------------------------------------------------

EQUAL = [
    ("1/2", "0.5"),
    ("\\frac{1}{2}", "0.5"),
    ("0.5", "\\frac{1}{2}"),
    ("10^3", "1000"),
    ("1000", "10^{3}"),
    ("1024", "2^{10}"),
    ("72", "72.0"),
    ("72", "$72$"),
    ("72", "72 apples"),
    ("72", "72 \\text{ cm}^2"),
    ("5 \\text{ cm}", "5"),
    ("72", "x = 72"),
    ("1/3", "0.333333"),
    ("[1,2)", "[1, 2)"),
    ("[0.5,\\infty)", "[\\frac12, \u221e)"),
    ("\\{1,2,3\\}", "\\{3, 2, 1\\}"),
    ("1,2,3", "3, 1 and 2"),
    ("(3,\\frac{\\pi}{2})", "\\left(3, \\pi/2\\right)"),
    ("x^2-5x+6", "(x-2)(x-3)"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("10\\sqrt{3}", "10\u221a3"),
    ("6-2i", "-2i+6"),
    ("50\\%", "0.5"),
    ("90^\\circ", "90"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("\\text{(C)}", "C"),
    ("\\text{Even}", "even"),
    ("\\text{no solution}", "No solution."),
    ("1 < x", "x > 1"),
]
DIFFERENT = [
    ("1/2", "1/3"),
    ("72", "73"),
    ("72", "72!"),
    ("72", "71 + 2"),
    ("1/3", "0.33"),
    ("1/3", "0.3333"),
    ("[1,2)", "(1,2)"),
    ("[1,2)", "[1,2]"),
    ("\\{1,2,3\\}", "\\{1,2\\}"),
    ("(1,2)", "(2,1)"),
    ("4/3", "1/3"),
    ("11/3", "1 1/3"),
    ("x^2-5x+6", "(x-2)(x+3)"),
    ("x+1", "y+1"),
    ("even", "neve"),
    ("even", "odd"),
    ("72", "71, 72"),
    ("72", "72 or 73"),
    ("72", "x"),
    ("72", "{72"),
    ("72", "72}{73"),
    ("72", "the answer is 5"),
    ("72", "\\infty"),
    ("72", "\\frac{1}{0}"),
    ("72", "\\frac{"),
    ("72", "\ud7ff\ud800\u0000"),
    ("72", "__import__('os').system('false')"),
    ("72", "72 if 1 else 0"),
    ("\\text{C}", "B"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_answers(reference: str, answer: str) -> None:
    assert right(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different_answers(reference: str, answer: str) -> None:
    assert not right(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), [("1/2", "0.50"), ("12", "13"), ("x+1", "X + 1"), ("yes", "no")])
def test_what_texts_and_numbers_decide_starts_no_process(
    reference: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "graders", lambda _: pytest.fail("a process is asked"))
    assert right(reference, answer) == (answer in ("0.50", "X + 1"))


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(-99, 99), st.integers(1, 99))
def test_numbers_are_equal_as_fractions_are(a: int, b: int, c: int, d: int) -> None:
    assert right(f"{a}/{b}", f"{c}/{d}") == (Fraction(a, b) == Fraction(c, d))
