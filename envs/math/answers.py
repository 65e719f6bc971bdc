"""Final answers as texts: cut out of a longer text, put into one form, read as plain numbers.

Nothing here raises on any text, but for what `final_answer` and `checked` say, and all of it takes linear time.
"""

from __future__ import annotations

import re
from fractions import Fraction

from envs.math.magnitude import is_too_large
from envs.protocol import Unreadable

MOST_CHARACTERS = 1000
# What the equivalence library takes seconds to give up on.
DEEPEST_BRACKETS = 16
MOST_CANONICAL = 200

SIGNS = str.maketrans({"−": "-", "–": "-", "∞": "\\infty ", "\u00a0": " "})
ROOT = re.compile(r"√\s*(\d+|\w|\([^()]*\))", re.ASCII)
NO_MEANING = re.compile(r"(?<!\\)\\[!,;:]|\\?\$|\\(?:left|right)(?![A-Za-z])\.?")
FRACTION_COMMAND = re.compile(r"\\[dtc]frac(?![A-Za-z])")
MONEY = re.compile(r"(?<=\d)\s*dollars?$", re.IGNORECASE)
PLAIN_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
# All blanks but single ones between letters and digits.
BLANK = re.compile(r"(?<![^\W_]) | (?![^\W_])")
WORDS = re.compile(r"[a-z]{3,}|[a-z]+(?: [a-z]+)+")
BOX = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
DECIMAL = re.compile(rf"([+-]?)\s*({_DECIMAL})", re.ASCII)
QUOTIENT = re.compile(
    rf"([+-]?)\s*(?:(\d+)\s+)?(?:({_DECIMAL})\s*/\s*({_DECIMAL})|\\frac\s*\{{(\d+)\}}\s*\{{(\d+)\}}|\\frac\s*(\d)(\d))",
    re.ASCII,
)


def last_boxed(text: str) -> str | None:
    r"""What stands in the `\boxed{...}` that begins last, of those whose braces balance; None if there is none."""
    opened: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for token in BOX.finditer(text):
        if token[0].endswith("{") and token[0] != "\\{":
            opened.append((token.end(), token[0] != "{"))
        elif token[0] == "}" and opened:
            start, boxed = opened.pop()
            if boxed and (best is None or start > best[0]):
                best = (start, token.start())
    return None if best is None else text[best[0] : best[1]]


def final_answer(field: str) -> str:
    r"""The answer in a record's field: after the last `####`; else the last `\boxed`; else all of it.

    It can be empty.
    """
    if "####" in field:
        return field.rpartition("####")[2].strip()
    boxed = last_boxed(field)
    return (field if boxed is None else boxed).strip()


def checked(text: str) -> str:
    """`cleaned` text. Raises Unreadable for one that cannot be graded: empty, too long, too deep or too large.

    The same holds for references. So an answer that would hang the grader earns no more than a wrong one, and no right
    one is lost but such as write a small number with the help of a huge one.
    """
    if len(text) > MOST_CHARACTERS:
        raise Unreadable(f"an answer has at most {MOST_CHARACTERS} characters.")
    said = cleaned(text)
    if not said:
        raise Unreadable("there is no answer in it.")
    depth = 0
    for character in said:
        depth += (character in "([{") - (character in ")]}")
        if depth > DEEPEST_BRACKETS:
            raise Unreadable("its brackets are nested too deep.")
    if is_too_large(said):
        raise Unreadable("its powers or factorials are too large.")
    return said


def cleaned(text: str) -> str:
    """An answer without the signs that mean nothing: boxes, dollars, thin spaces, the period at its end."""
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).translate(SIGNS).replace("{,}", ",")
    text = FRACTION_COMMAND.sub(r"\\frac", NO_MEANING.sub("", ROOT.sub(r"\\sqrt{\1}", text)))
    text = text.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return MONEY.sub("", text)


def normal(said: str) -> str:
    """One form for cleaned texts that are the same but for writing: a number in lowest terms, else lower-case text."""
    number = plain_number(said)
    if number is not None:
        return str(number)
    return BLANK.sub("", " ".join(PLAIN_TEXT.sub(r"\1", said).lower().split()))


def plain_number(said: str) -> Fraction | None:
    r"""The exact value of a whole number, decimal, fraction (`1/2`, `\frac{1}{2}`) or mixed number; else None."""
    match = DECIMAL.fullmatch(said)
    if match is not None:
        return _signed(match[1], _value(match[2]))
    match = QUOTIENT.fullmatch(said)
    if match is None:
        return None
    sign, whole, *parts = match.groups()
    above, below = (_value(part) for part in parts if part is not None)
    return _signed(sign, _value(whole or "0") + above / below) if below else None


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def is_words(form: str) -> bool:
    """Whether a normal form is words and no formula. The library would take `even` and `neve` for equal products."""
    return WORDS.fullmatch(form) is not None
