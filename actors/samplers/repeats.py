"""When two sketches, or two solutions, count as the same."""

from __future__ import annotations

import re

from configs.samplers import SameAs

_WORD = re.compile(r"\w+|[^\w\s]")


def identity(text: str, canonical: str, same_as: SameAs) -> str:
    """What is equal for texts that count as the same. canonical: the environment's own form of the text.

    `exact`: the text; `normalised`: its words and signs in small letters, however they are spaced.
    """
    if same_as == "environment":
        return canonical
    return text if same_as == "exact" else " ".join(_WORD.findall(text.casefold()))
