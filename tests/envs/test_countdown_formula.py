"""Countdown's formulas: read from any text, valued exactly, compared by a canonical form."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.countdown.formula import (
    DEEPEST,
    LONGEST,
    MOST_DIGITS,
    OPERATORS,
    SIGNS,
    Formula,
    Negation,
    Operation,
    canonical,
    numbers_of,
    operations_of,
    read_formula,
    value_of,
    written,
)
from envs.protocol import Unreadable


def grown(parts: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    operations: st.SearchStrategy[Formula] = st.builds(Operation, st.sampled_from(OPERATORS), parts, parts)
    return operations | st.builds(Negation, parts)


FORMULAS: st.SearchStrategy[Formula] = st.recursive(st.integers(0, 120), grown, max_leaves=9)
# Of so few numbers that some cancel each other.
SUMS = st.lists(st.sampled_from(["+1", "-1", "+2", "-2"]), min_size=1, max_size=4).map(
    lambda terms: "2" + "".join(terms)
)
CANCELLING = st.builds("{}*({})".format, SUMS | st.just("3"), SUMS).map(read_formula)


def value_or_none(formula: Formula) -> Fraction | None:
    try:
        return value_of(formula)
    except ZeroDivisionError:
        return None


def by_python(formula: Formula) -> Fraction | None:
    """The value by Python's own grammar, of a text made here."""
    text = re.sub(r"\d+", r"Fraction(\g<0>)", written(formula))
    try:
        return Fraction(eval(text, {"Fraction": Fraction}))
    except ZeroDivisionError:
        return None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("(3 + 7) * 2", 20),
        ("3+7*2", 17),
        ("20-7-3", 10),
        ("20-(7-3)", 16),
        ("48/4/3", 4),
        ("48/(4/3)", 36),
        ("1/3+1/6", Fraction(1, 2)),
        ("2-7", -5),
        ("-3+7", 4),
        ("3*-2", -6),
        ("3--2", 5),
        ("-(3+4)*2", -14),
        ("((((5))))", 5),
        ("007+1", 8),
        ("\t( 3+7 )\n*2 ", 20),
        ("3×7", 21),
        ("3·7", 21),
        ("8÷2", 4),
        ("8−2", 6),
        ("(3 + 7) * 2 = 20", 20),
        ("(3 + 7) * 2 = 99", 20),
        ("2-7 = -5", -5),
        ("2-7=−5", -5),
        ("999999*1", 999999),
    ],
)
def test_formulas_and_their_values(text: str, value: Fraction) -> None:
    assert value_of(read_formula(text)) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a number is missing"),
        ("=", "only a number"),
        ("3+", "a number is missing"),
        ("*3", "a number is missing"),
        ("+3", "a number is missing"),
        ("3 7", "an operator is missing"),
        ("2(3+4)", "an operator is missing"),
        ("(3+4)2", "an operator is missing"),
        ("3)", "a bracket is not open"),
        ("(3", "a bracket or an operator is missing"),
        ("(3 7)", "a bracket or an operator is missing"),
        ("()", "a number is missing"),
        ("2**3", "a number is missing"),
        ("7//2", "a number is missing"),
        ("3.5+1", "numbers, + - * / and brackets only"),
        ("1e3", "numbers, + - * / and brackets only"),
        ("3^2", "numbers, + - * / and brackets only"),
        ("[3+7]", "numbers, + - * / and brackets only"),
        ("3x7", "numbers, + - * / and brackets only"),
        ("3+7=", "only a number"),
        ("3+7=10=10", "only a number"),
        ("10=3+7", "only a number"),
        ("3+7=ten", "only a number"),
        ("\u0663+\u0664", "numbers, + - * / and brackets only"),
        ("\uff13+4", "numbers, + - * / and brackets only"),
        ("\u00b2", "numbers, + - * / and brackets only"),
        ("3\u00a0+4", "numbers, + - * / and brackets only"),
        ("3+4=\u0667", "only a number"),
        ("1234567", "at most 6 digits"),
        ("__import__('os')", "numbers, + - * / and brackets only"),
        ("9**9**9", "a number is missing"),
        ("9" * 10**6, "at most 400 characters"),
        ("(" * 10**6, "at most 400 characters"),
        ("-" * 400, "50 deep at most"),
        ("(" * 400, "50 deep at most"),
    ],
)
def test_what_is_no_formula(text: str, complaint: str) -> None:
    began = time.perf_counter()
    with pytest.raises(Unreadable, match=re.escape(complaint)) as refusal:
        read_formula(text)
    assert time.perf_counter() - began < 0.5
    assert str(refusal.value).endswith(".")


def test_limits_are_reached_and_not_passed() -> None:
    assert value_of(read_formula("9" * MOST_DIGITS)) == 10**MOST_DIGITS - 1
    assert value_of(read_formula("(" * DEEPEST + "1" + ")" * DEEPEST)) == 1
    assert value_of(read_formula("-" * DEEPEST + "1")) == 1
    with pytest.raises(Unreadable):
        read_formula("(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1))
    # Side by side, brackets are not deep.
    assert value_of(read_formula("+".join(["(1)"] * (DEEPEST + 10)))) == DEEPEST + 10
    longest = "1" + "+1" * ((LONGEST - 1) // 2)
    assert value_of(read_formula(f"{longest}  ")) == len(longest) // 2 + 1
    with pytest.raises(Unreadable):
        read_formula(longest + "+1")


@pytest.mark.parametrize("text", ["1+1*(" * 50 + "1+1" + ")" * 50, "1*(2-" * 50 + "1" + ")" * 50 + "/999999" * 11])
def test_the_worst_formulas_take_no_time(text: str) -> None:
    began = time.perf_counter()
    formula = read_formula(text)
    canonical(formula)
    value_of(formula)
    assert time.perf_counter() - began < 0.5


@given(st.text() | st.text("0123456789+-*/() =×÷−·", max_size=60))
def test_any_text_is_a_formula_or_unreadable(text: str) -> None:
    try:
        formula = read_formula(text)
    except Unreadable:
        return
    assert sorted(numbers_of(formula)) == sorted(int(n) for n in re.findall("[0-9]+", text.partition("=")[0]))
    canonical(formula)


@given(FORMULAS)
def test_a_formula_reads_back_as_it_was_written(formula: Formula) -> None:
    assert read_formula(written(formula)) == formula
    assert value_or_none(formula) == by_python(formula)


@given(st.lists(st.tuples(st.sampled_from(OPERATORS), st.integers(0, 30)), max_size=12), st.integers(0, 30))
def test_precedence_is_that_of_python(steps: list[tuple[str, int]], first: int) -> None:
    text = f"{first}" + "".join(f" {operator} {number}" for operator, number in steps)
    try:
        expected = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert value_or_none(read_formula(text)) == expected
    assert value_or_none(read_formula(text.replace("*", "×").replace("-", "−").replace("/", "÷"))) == expected


def test_signs_stand_for_operators() -> None:
    assert "×÷−·".translate(SIGNS) == "*/-*"


def test_operations_come_in_the_order_they_are_applied() -> None:
    formula = read_formula("(1+2)*(9-4)/5")
    assert "".join(operation.operator for operation in operations_of(formula)) == "+-*/"
    assert [value_of(operation) for operation in operations_of(formula)] == [3, 5, 15, 3]
    assert [operation.operator for operation in operations_of(read_formula("-(1+2)"))] == ["+"]
    assert written(formula) == "((1+2)*(9-4))/5"


# --- canonical form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        ["(3+7)*2", "2*(7+3)", "(2)*((3)+7)", "2*(3+7)=20"],
        ["1+2+3", "3+(1+2)", "(2+1)+3"],
        ["9-(5-2)", "9-5+2", "2+9-5", "9+(2-5)", "9--2-5"],
        ["8/(4/3)", "8*3/4", "3*(8/4)", "8/4*3"],
        ["3*(7-2)", "(7-2)*3", "-3*(2-7)", "-((2-7)*3)"],
        ["20-3*(2-7)", "20+3*(7-2)"],
        ["(9-2)*(8-5)", "(2-9)*(5-8)", "(5-8)*(2-9)"],
        ["6/(5-2)", "-6/(2-5)"],
        ["(3-3)*5", "5*(3-3)"],
        ["3*(7+12-12)", "-3*(12-12-7)", "(12+7-12)*3"],
        ["3*(7-12+12-2)", "3*(7-2+12-12)", "-3*(2+12-7-12)"],
        ["3*(5+5-5)", "-(5-5-5)*3"],
        ["20-3*(7-7)", "20+3*(7-7)", "3*-(7-7)+20"],
        ["2*(5-3*(7-7))", "-2*(3*(7-7)-5)"],
    ],
)
def test_one_solution_written_in_many_ways(same: list[str]) -> None:
    assert len({canonical(read_formula(text)) for text in same}) == 1


@pytest.mark.parametrize(
    "different",
    [
        ["(3+7)*2", "3+7*2", "3*2+7*2", "(3+2)*7"],
        ["6*1", "6/1", "6+1"],
        ["9-5-2", "9-5+2", "9+5-2"],
        ["8/4/2", "8/4*2", "8*4/2"],
        ["12+3", "1+23", "1+2+3"],
        ["2*(3+4)", "2*3+4"],
        ["3*(7+12-12)", "3*(12+7-7)"],
        ["3*(7-12+12)", "3*(7-12-12)"],
    ],
)
def test_different_solutions(different: list[str]) -> None:
    assert len({canonical(read_formula(text)) for text in different}) == len(different)


def test_the_canonical_form_can_be_read() -> None:
    assert canonical(read_formula("((7)+3)*2/(9-8)")) == "2*(3+7)/(9-8)"
    assert canonical(read_formula("-7+3*2")) == "2*3-7"
    assert canonical(read_formula("-7-3")) == "-3-7"


@given(FORMULAS)
def test_the_canonical_form_is_a_formula_of_the_same_numbers_value_and_form(formula: Formula) -> None:
    form = canonical(formula)
    again = read_formula(form)
    assert canonical(again) == form
    assert sorted(numbers_of(again)) == sorted(numbers_of(formula))
    value = value_or_none(formula)
    # Moving a factor out of a quotient that divides by zero, as in 1/(2/0), can make a value of none.
    if value is not None:
        assert value_or_none(again) == value


@given(FORMULAS | CANCELLING, st.randoms())
def test_order_brackets_and_places_of_signs_do_not_change_the_canonical_form(formula: Formula, random: Random) -> None:
    assert canonical(rearranged(formula, random)) == canonical(formula)
    moved = resigned(rearranged(formula, random), random)
    assert value_or_none(moved) == value_or_none(formula)
    assert canonical(moved) == canonical(formula)


def rearranged(formula: Formula, random: Random) -> Formula:
    """Operands of + and * swapped and regrouped here and there: a+(b+c) for (a+b)+c."""
    flip = random.random() < 0.5
    if isinstance(formula, int):
        return formula
    if isinstance(formula, Negation):
        return Negation(rearranged(formula.part, random))
    operator, left, right = formula.operator, rearranged(formula.left, random), rearranged(formula.right, random)
    if operator in "+*" and flip:
        left, right = right, left
    if operator in "+*" and isinstance(left, Operation) and left.operator == operator:
        return Operation(operator, left.left, Operation(operator, left.right, right))
    return Operation(operator, left, right)


def resigned(formula: Formula, random: Random) -> Formula:
    """Signs moved here and there: -(b-a) for a-b, -(-a*b) for a*b, -(-a-b) for a+b."""
    if isinstance(formula, int):
        return formula
    if isinstance(formula, Negation):
        return Negation(resigned(formula.part, random))
    operator, left, right = formula.operator, resigned(formula.left, random), resigned(formula.right, random)
    if random.random() < 0.5:
        return Operation(operator, left, right)
    if operator == "-":
        return Negation(Operation("-", right, left))
    return Negation(Operation("-" if operator == "+" else operator, Negation(left), right))
