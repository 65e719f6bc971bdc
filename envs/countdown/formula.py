"""Formulas of whole numbers: reading them from any text, their exact value, and a form equal for equal solutions.

Reading never raises anything but Unreadable, takes time linear in the text, and never evaluates text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from envs.protocol import Unreadable

OPERATORS = "+-*/"
# Signs that stand for the operators above.
SIGNS = str.maketrans("×÷−·", "*/-*")

LONGEST = 400
MOST_DIGITS = 6
DEEPEST = 50

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])", re.ASCII)
_RESULT = re.compile(r"\s*-?\s*[0-9]{1,9}\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Operation:
    """`left operator right`."""

    operator: str
    left: Formula
    right: Formula


@dataclass(frozen=True, slots=True)
class Negation:
    """`-part`."""

    part: Formula


Formula: TypeAlias = int | Operation | Negation


# --- reading ---------------------------------------------------------------------------------------------------------


def read_formula(text: str) -> Formula:
    """The formula that `text` is; `= 20` behind it is left out of account, right or wrong.

    Raises Unreadable on anything else, and beyond LONGEST characters, MOST_DIGITS in a number or DEEPEST brackets and
    signs inside each other.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise Unreadable(f"a formula has at most {LONGEST} characters.")
    formula, equals, result = text.translate(SIGNS).partition("=")
    if equals and not _RESULT.fullmatch(result):
        raise Unreadable("only a number can follow =.")
    return _Reader(_tokens(formula)).whole()


def _tokens(text: str) -> list[str]:
    tokens, at, end = [], 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise Unreadable("a formula has numbers, + - * / and brackets only.")
        if len(found[1]) > MOST_DIGITS:
            raise Unreadable(f"a number has at most {MOST_DIGITS} digits.")
        tokens.append(found[1])
        at = found.end()
    return tokens


class _Reader:
    """Recursive descent: sum = product {+- product}; product = factor {*/ factor}; factor = number | (sum) | -factor.

    An empty token stands behind the last.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.at = 0
        self.depth = 0

    def whole(self) -> Formula:
        formula = self._sum()
        if self.tokens[self.at]:
            raise Unreadable("an operator is missing or a bracket is not open.")
        return formula

    def _take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def _sum(self) -> Formula:
        formula = self._product()
        while self.tokens[self.at] in ("+", "-"):
            formula = Operation(self._take(), formula, self._product())
        return formula

    def _product(self) -> Formula:
        formula = self._factor()
        while self.tokens[self.at] in ("*", "/"):
            formula = Operation(self._take(), formula, self._factor())
        return formula

    def _factor(self) -> Formula:
        token = self.tokens[self.at]
        if token.isdigit():
            return int(self._take())
        if token not in ("(", "-"):
            raise Unreadable("a number is missing.")
        if self.depth == DEEPEST:
            raise Unreadable(f"brackets go {DEEPEST} deep at most.")
        self.depth += 1
        self._take()
        formula = self._bracket() if token == "(" else Negation(self._factor())
        self.depth -= 1
        return formula

    def _bracket(self) -> Formula:
        formula = self._sum()
        if self.tokens[self.at] != ")":
            raise Unreadable("a bracket or an operator is missing.")
        self._take()
        return formula


# --- what a formula says ---------------------------------------------------------------------------------------------


def numbers_of(formula: Formula) -> list[int]:
    """Its numbers as they stand, left to right."""
    if isinstance(formula, int):
        return [formula]
    if isinstance(formula, Negation):
        return numbers_of(formula.part)
    return numbers_of(formula.left) + numbers_of(formula.right)


def value_of(formula: Formula) -> Fraction:
    """Exact. Raises ZeroDivisionError."""
    if isinstance(formula, int):
        return Fraction(formula)
    if isinstance(formula, Negation):
        return -value_of(formula.part)
    return applied(formula.operator, value_of(formula.left), value_of(formula.right))


def applied(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """Raises ZeroDivisionError."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def operations_of(formula: Formula) -> Iterator[Operation]:
    """In the order they are made: what an operation needs comes before it, left before right."""
    if isinstance(formula, Negation):
        yield from operations_of(formula.part)
    elif isinstance(formula, Operation):
        yield from operations_of(formula.left)
        yield from operations_of(formula.right)
        yield formula


def written(formula: Formula) -> str:
    """`(3*7)+2`: brackets around every part that is not a number."""
    if isinstance(formula, int):
        return str(formula)
    if isinstance(formula, Negation):
        return f"-{_part(formula.part)}"
    return f"{_part(formula.left)}{formula.operator}{_part(formula.right)}"


def _part(formula: Formula) -> str:
    return str(formula) if isinstance(formula, int) else f"({written(formula)})"


# --- canonical form --------------------------------------------------------------------------------------------------

# Text and sign of each term of a sum, sorted; the sign is 0 where both signs make the same, as of 3*(7-7).
Terms: TypeAlias = list[tuple[str, int]]


def canonical(formula: Formula) -> str:
    """Equal for formulas that differ only by the order of terms and factors, by brackets that change nothing, and by
    where a sign stands: `3*(7-2)`, `(7-2)*3` and `-(2-7)*3` are one solution. Nothing is multiplied out.
    """
    return _sum_text(_terms(formula))


def _terms(formula: Formula) -> Terms:
    terms: Terms = []
    _gather_terms(formula, 1, terms)
    # Shorter first, so that numbers stand in order and before brackets.
    return sorted(terms, key=lambda term: (len(term[0]), term))


def _gather_terms(formula: Formula, sign: int, terms: Terms) -> None:
    if isinstance(formula, Negation):
        _gather_terms(formula.part, -sign, terms)
    elif isinstance(formula, Operation) and formula.operator in "+-":
        _gather_terms(formula.left, sign, terms)
        _gather_terms(formula.right, sign if formula.operator == "+" else -sign, terms)
    else:
        above: list[str] = []
        below: list[str] = []
        sign *= _gather_factors(formula, above, below)
        terms.append((_product_text(above, below), sign))


def _gather_factors(formula: Formula, above: list[str], below: list[str]) -> int:
    """Sort the factors of a product to those above and below the line; returns its sign, which they leave out."""
    if isinstance(formula, int):
        above.append(str(formula))
        return 1
    if isinstance(formula, Negation):
        return -_gather_factors(formula.part, above, below)
    if formula.operator in "+-":
        sign, text = _unsigned(_terms(formula))
        above.append(f"({text})")
        return sign
    left = _gather_factors(formula.left, above, below)
    right = _gather_factors(formula.right, *((above, below) if formula.operator == "*" else (below, above)))
    return left * right


def _unsigned(terms: Terms) -> tuple[int, str]:
    """A sum as sign and text, so that a-b and b-a have the same text: the last term that is left counts as positive.

    Terms that cancel each other, as in a+b-b, say nothing of the sign; where no other is left it is 0.
    """
    net: Counter[str] = Counter()
    for text, own in terms:
        net[text] += own
    last = next((net[text] for text, _ in reversed(terms) if net[text]), 0)
    if not last:
        return 0, _sum_text(terms)
    sign = 1 if last > 0 else -1
    return sign, _sum_text([(text, sign * own) for text, own in terms])


def _product_text(above: list[str], below: list[str]) -> str:
    def ordered(factors: list[str]) -> list[str]:
        return sorted(factors, key=lambda text: (len(text), text))

    return "/".join(["*".join(ordered(above)), *ordered(below)])


def _sum_text(terms: Terms) -> str:
    """Positive terms first."""
    positive = [text for text, sign in terms if sign >= 0]
    negative = [text for text, sign in terms if sign < 0]
    return "+".join(positive) + "".join(f"-{text}" for text in negative)
