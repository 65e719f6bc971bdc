"""When two texts count as the same."""

from __future__ import annotations

import pytest

from actors.samplers.repeats import identity
from configs.samplers import SameAs


def same(one: str, two: str, same_as: SameAs, canonical: tuple[str, str] = ("a", "b")) -> bool:
    return identity(one, canonical[0], same_as) == identity(two, canonical[1], same_as)


@pytest.mark.parametrize(
    ("one", "two", "normalised"),
    [
        ("via r1c2", "via r1c2", True),
        ("via r1c2", "Via  R1C2\n", True),
        ("1+2", "1 + 2", True),
        ("STRASSE", "straße", True),
        ("1 + 2", "1 - 2", False),
        ("1 + 2", "1 + 2.", False),
        ("r1c2", "r1 c2", False),
        ("", " \n", True),
    ],
)
def test_normalised_texts_have_the_same_words_and_signs(one: str, two: str, normalised: bool) -> None:
    assert same(one, two, "normalised") is normalised
    assert same(two, one, "normalised") is normalised
    assert same(one, two, "exact") is (one == two)


def test_the_environment_says_by_its_own_form_whatever_the_text() -> None:
    assert same("one", "another", "environment", ("same", "same"))
    assert not same("one", "one", "environment", ("a", "b"))
