"""When a run is over: its updates are done, the tokens it may generate are spent, or a metric says so."""

from __future__ import annotations

from configs.schema import RunSettings, StopSettings


def is_over(settings: RunSettings, updates: int, generated_tokens: int, beyond: int = 0) -> bool:
    """updates, generated_tokens: done and sampled for training so far; the update that reaches the budget counts.

    beyond: updates in a row in which the metric of `run.stop` was beyond its bound.
    """
    return updates >= settings.updates or is_spent(settings, generated_tokens) or is_stopped(settings, beyond)


def is_spent(settings: RunSettings, generated_tokens: int) -> bool:
    return settings.max_tokens is not None and generated_tokens >= settings.max_tokens


def is_stopped(settings: RunSettings, beyond: int) -> bool:
    return settings.stop is not None and beyond >= settings.stop.updates


def beyond_bound(stop: StopSettings, before: int, value: float | None) -> int:
    """Updates in a row beyond the bound after one more, of this value; without a value the count stays."""
    if value is None or value != value:
        return before
    is_beyond = value >= stop.at_least if stop.at_least is not None else value <= (stop.at_most or 0.0)
    return before + 1 if is_beyond else 0
