"""Countdown's search against brute force."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.countdown.formula import OPERATORS, applied, numbers_of, operations_of, value_of
from envs.countdown.search import Search, plans, solution

NUMBERS = st.lists(st.integers(1, 12), min_size=3, max_size=4).map(tuple)


def brute(values: list[tuple[Fraction, str, bool]]) -> Iterator[tuple[Fraction, str, bool]]:
    """All that any two values after another can be combined to, negative ones too: value, operators, all whole >= 0.

    The operators are those of the left part, then the right part, then the last.
    """
    if len(values) == 1:
        yield values[0]
    for i, j in itertools.permutations(range(len(values)), 2):
        (a, before, first), (b, after, second) = values[i], values[j]
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        for operator in OPERATORS:
            if operator != "/" or b:
                value = applied(operator, a, b)
                fine = first and second and value >= 0 and value.denominator == 1
                yield from brute([*rest, (value, before + after + operator, fine)])


def all_of(numbers: tuple[int, ...]) -> set[tuple[Fraction, str, bool]]:
    return set(brute([(Fraction(n), "", True) for n in numbers]))


def everything(count: int) -> int:
    return (1 << count) - 1


@settings(max_examples=12, deadline=None)
@given(NUMBERS)
def test_all_values_are_found(numbers: tuple[int, ...]) -> None:
    found = all_of(numbers)
    full = everything(len(numbers))
    assert set(Search(numbers, whole=False).table(full)) == {abs(value) for value, _, _ in found}
    assert set(Search(numbers, whole=True).table(full)) == {value for value, _, fine in found if fine}


@settings(max_examples=12, deadline=None)
@given(NUMBERS)
def test_all_plans_over_whole_numbers_are_found_and_their_formulas_do_what_they_say(numbers: tuple[int, ...]) -> None:
    found = all_of(numbers)
    for target in range(1, 60):
        made = plans(numbers, target, whole=True)
        assert set(made) == {plan for value, plan, fine in found if fine and value == target}
        for plan, formula in made.items():
            assert value_of(formula) == target
            assert sorted(numbers_of(formula)) == sorted(numbers)
            assert "".join(operation.operator for operation in operations_of(formula)) == plan
            assert all(value_of(o) >= 0 and value_of(o).denominator == 1 for o in operations_of(formula))


@settings(max_examples=12, deadline=None)
@given(NUMBERS)
def test_there_is_a_solution_just_where_brute_force_has_one(numbers: tuple[int, ...]) -> None:
    reached = {value for value, _, _ in all_of(numbers)}
    for target in range(1, 60):
        formula = solution(numbers, target)
        assert (formula is not None) == (target in reached)
        if formula is not None:
            assert value_of(formula) == target
            assert sorted(numbers_of(formula)) == sorted(numbers)


@pytest.mark.parametrize(
    ("numbers", "target", "solvable"),
    [
        ((3, 3, 8, 8), 24, True),  # 8 / (3 - 8/3) and nothing else
        ((1, 5, 5, 5), 24, True),  # 5 * (5 - 1/5)
        ((1, 1, 1, 1), 24, False),
        ((3, 3, 5, 7), 5, True),  # 5 + 7 * (3 - 3): a zero that swallows
        ((2, 2, 2), 1, True),  # 2 - 2/2
        ((1, 1, 2), 5, False),
        ((1, 3, 7, 10, 25, 50), 765, True),  # the television game's example
        ((1, 1, 1, 1, 1, 1), 9999, False),
        ((5,), 5, True),
        ((5, 7), 2, True),
    ],
)
def test_known_puzzles(numbers: tuple[int, ...], target: int, solvable: bool) -> None:
    assert (solution(numbers, target) is not None) == solvable


def test_fractions_are_only_used_where_whole_numbers_fail() -> None:
    assert not plans((3, 3, 8, 8), 24, whole=True)
    assert plans((3, 3, 8, 8), 24, whole=False)
    formula = solution((4, 6, 1), 24)
    assert formula is not None
    assert all(value_of(operation).denominator == 1 for operation in operations_of(formula))


def test_plans_come_in_a_fixed_order() -> None:
    made = plans((3, 1, 2), 6, whole=True)
    assert list(made) == sorted(made, key=lambda plan: [OPERATORS.index(o) for o in plan])
    assert next(iter(made)) == "++"


def test_five_numbers_agree_with_a_table_of_all_values() -> None:
    numbers = (2, 3, 7, 11, 13)
    for whole in (True, False):
        reached = Search(numbers, whole).table(everything(5))
        for target in range(1, 400, 7):
            assert set(plans(numbers, target, whole)) == set(reached.get(target, {}))


def test_six_numbers_take_seconds_at_most() -> None:
    numbers = (3, 17, 29, 44, 71, 98)
    began = time.perf_counter()
    for target in (98, 9973):
        formula = solution(numbers, target)
        if formula is not None:
            assert value_of(formula) == target
    assert time.perf_counter() - began < 5
