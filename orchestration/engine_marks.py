"""Readings of the engines' clocks, moved so that what was no training falls out between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.engine import EngineClock


def tokens_between(before: Sequence[EngineClock], after: Sequence[EngineClock]) -> int:
    """Tokens all engines sampled between two readings."""
    return sum(new.sampled_tokens - old.sampled_tokens for new, old in zip(after, before, strict=True))


def evaluation_share(before: Sequence[EngineClock], after: Sequence[EngineClock], evaluation_tokens: int) -> float:
    """Share of the engines' work between two readings that was the evaluation's, by tokens, 0 to 1.

    The rest is that of tickets in flight, which go on being sampled meanwhile where the lag bound lets them.
    """
    tokens = tokens_between(before, after)
    return min(1.0, evaluation_tokens / tokens) if tokens else 1.0


def moved_on(
    marks: Sequence[EngineClock], before: Sequence[EngineClock], after: Sequence[EngineClock], share: float
) -> list[EngineClock]:
    """The marks with `share` of the seconds between two readings left out; tokens are not moved."""
    return [
        replace(
            mark,
            up_s=mark.up_s + share * (new.up_s - old.up_s),
            busy_s=mark.busy_s + share * (new.busy_s - old.busy_s),
            paused_s=mark.paused_s + share * (new.paused_s - old.paused_s),
        )
        for mark, old, new in zip(marks, before, after, strict=True)
    ]
