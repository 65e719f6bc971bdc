"""The learning rate as a pure function of the update: there is no scheduler's state to save."""

from __future__ import annotations

from math import cos, pi

from configs.schema import OptimSettings


def learning_rate(settings: OptimSettings, done: int, updates: int) -> float:
    """The rate of update number `done` + 1 of `updates`: linear growth over warmup_updates, then the schedule.

    A falling schedule reaches lr * min_lr_share with the last update.
    """
    if done < settings.warmup_updates:
        return settings.lr * (done + 1) / settings.warmup_updates
    if settings.schedule == "constant":
        return settings.lr
    falling = updates - settings.warmup_updates
    passed = min((done + 1 - settings.warmup_updates) / falling, 1.0) if falling > 0 else 1.0
    left = 1 - passed if settings.schedule == "linear" else (1 + cos(pi * passed)) / 2
    return settings.lr * (settings.min_lr_share + (1 - settings.min_lr_share) * left)
