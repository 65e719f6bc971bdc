"""Readings of the engines' clocks, moved so that what was no training falls out between two of them.

Readings are by (number, life) of an actor: one that was started again has a new clock. What an engine did between its
last reading and its end is in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from actors.engine import EngineClock

Clocks = Mapping[tuple[int, int], EngineClock]
STOPPED = EngineClock(0.0, 0.0, 0.0, 0)  # what an engine starts from


def tokens_between(before: Clocks, after: Clocks) -> int:
    """Tokens all engines sampled between two readings."""
    return sum(new.sampled_tokens - before.get(key, STOPPED).sampled_tokens for key, new in after.items())


def cache_hits_between(before: Clocks, after: Clocks) -> float | None:
    """Share of the prompts' tokens that engines found in their prefix caches; None where there were none."""
    pairs = [(before.get(key, STOPPED), new) for key, new in after.items()]
    prompts = sum(new.prompt_tokens - old.prompt_tokens for old, new in pairs)
    return sum(new.cached_tokens - old.cached_tokens for old, new in pairs) / prompts if prompts > 0 else None


def idle_between(before: Clocks, after: Clocks) -> float:
    """Seconds between two readings in which an engine neither stepped nor was paused for weights; mean, not below 0."""
    pairs = [(before.get(key, STOPPED), new) for key, new in after.items()]
    gaps = [(new.up_s - old.up_s) - (new.busy_s - old.busy_s) - (new.paused_s - old.paused_s) for old, new in pairs]
    return max(fmean(gaps), 0.0) if gaps else 0.0


def paused_between(before: Clocks, after: Clocks) -> float:
    """Seconds between two readings in which an engine stood still for new weights; mean."""
    pauses = [new.paused_s - before.get(key, STOPPED).paused_s for key, new in after.items()]
    return fmean(pauses) if pauses else 0.0


def evaluation_share(before: Clocks, after: Clocks, evaluation_tokens: int) -> float:
    """Share of the engines' work between two readings that was the evaluation's, by tokens, 0 to 1.

    The rest is that of tickets in flight, which go on being sampled meanwhile where the lag bound lets them.
    """
    tokens = tokens_between(before, after)
    return min(1.0, evaluation_tokens / tokens) if tokens else 1.0


def moved_on(marks: Clocks, before: Clocks, after: Clocks, share: float) -> Clocks:
    """The marks with `share` of the seconds between two readings left out; tokens are not moved."""

    def moved(mark: EngineClock, old: EngineClock, new: EngineClock) -> EngineClock:
        return replace(
            mark,
            up_s=mark.up_s + share * (new.up_s - old.up_s),
            busy_s=mark.busy_s + share * (new.busy_s - old.busy_s),
            paused_s=mark.paused_s + share * (new.paused_s - old.paused_s),
        )

    return {key: moved(marks.get(key, STOPPED), before.get(key, STOPPED), new) for key, new in after.items()}
