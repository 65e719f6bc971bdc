r"""Whether a formula asks for a number that nobody can write down, such as 9^{9^{9}}, 100000! or ((10!)!)!.

The equivalence library would compute it, or try for ever. One pass over the text follows powers and factorials of
numbers; what holds a variable has no value here. It is no bound on all that takes the library long: sums, binomials,
functions and expansions such as (x+1)^{5000} are left to the grader's limits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Of an exponent, and of what a factorial is taken: questions do end in 2^{2006} or 2020!.
LARGEST_STEP = math.log10(10_000)
MOST_DIGITS = 1e6
TOKEN = re.compile(r"(?P<number>\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)|\\[A-Za-z]+|\S", re.ASCII)


@dataclass(slots=True)
class _Group:
    """What stands between two brackets, as far as it is read; values are logarithms to base 10.

    `last`: what a `^` or `!` to come applies to. `base`: of the power whose exponent comes next.
    """

    largest: float = -math.inf
    symbolic: bool = False
    last: float | None = None
    base: float | None = None
    in_power: bool = False

    @property
    def value(self) -> float | None:
        """None for that of a variable, or of nothing. Of a sum or product: that of its largest part."""
        return None if self.symbolic or self.largest == -math.inf else self.largest

    def take(self, value: float | None) -> None:
        """Raises OverflowError."""
        if self.in_power:
            value = _power(self.base, value)
        self.in_power, self.last = False, value
        if value is not None:
            self.largest = max(self.largest, value)

    def read(self, sign: str) -> None:
        """Any token but numbers and brackets. Raises OverflowError."""
        if sign == "^":
            self.base, self.in_power = self.last, True
        elif sign == "!" and self.last is not None:
            self.take(_factorial(self.last))
        elif not (self.in_power and sign in "+-"):
            self.symbolic |= sign.isalpha()
            self.in_power, self.last = False, None


def is_too_large(formula: str) -> bool:
    """Whether an exponent, or what a factorial is taken of, is a number above 10^4, or a power has too many digits."""
    try:
        _follow(formula)
    except OverflowError:
        return True
    return False


def _follow(formula: str) -> None:
    groups = [_Group()]
    for token in TOKEN.finditer(formula):
        sign = token[0]
        if sign in "([{":
            groups.append(_Group())
        elif sign in ")]}" and len(groups) > 1:
            inner = groups.pop()
            groups[-1].symbolic |= inner.symbolic
            groups[-1].take(inner.value)
        elif token["number"]:
            groups[-1].take(_logarithm(sign.replace(",", "")))
        else:
            groups[-1].read(sign)


def _power(base: float | None, exponent: float | None) -> float | None:
    if exponent is None:
        return None
    if exponent > LARGEST_STEP:
        raise OverflowError
    if base is None:
        return None
    value = base * 10**exponent
    if abs(value) > MOST_DIGITS:
        raise OverflowError
    return value


def _factorial(value: float) -> float:
    if value > LARGEST_STEP:
        raise OverflowError
    return math.lgamma(10**value + 1) / math.log(10)


def _logarithm(number: str) -> float:
    """That of 1 for a zero."""
    whole, _, rest = number.partition(".")
    digits = (whole + rest).lstrip("0")
    return math.log10(int(digits)) - len(rest) if digits else 0.0
