"""What a process may ask of the node it runs on, in Ray's terms: custom resources and labels."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, PositiveFloat, StringConstraints

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))")


def _not_counted_elsewhere(resources: dict[str, float]) -> dict[str, float]:
    if taken := {"CPU", "GPU"} & set(resources):
        raise ValueError(f"{', '.join(sorted(taken))}: has a key of its own beside node_resources")
    return resources


def _is_selector(text: str) -> str:
    if not _SELECTOR.fullmatch(text):
        raise ValueError("must be a label's value, `!value`, `in(a, b)` or `!in(a, b)`")
    return text


_Name = Annotated[str, StringConstraints(min_length=1)]
NodeResources = Annotated[dict[_Name, PositiveFloat], AfterValidator(_not_counted_elsewhere)]
NodeLabels = dict[_Name, Annotated[str, AfterValidator(_is_selector)]]
