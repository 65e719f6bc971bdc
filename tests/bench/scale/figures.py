"""What is measured of one number of actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LAGS = ("groups_lag_0", "groups_lag_1", "groups_lag_2_3", "groups_lag_4_up")  # as metrics.jsonl names them


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of a process so far, all of its threads; loop_s: of its event loop's thread, which Python runs in."""

    process_s: float
    loop_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """Microseconds are of CPU time over tickets issued; `loop`: of the event loop's thread alone.

    Of the whole run: counts, wall_s, what the queue holds, memory, lags. All else is of the run in its stride
    (`meters.Meters`). cpu_share: loop seconds over wall seconds, 1 where the process can do no more. rss_growth: of the
    driver, a straight line's over the last three quarters, KiB per 10,000 tickets trained.
    """

    actors: int
    issued: int
    trained: int
    filtered: int
    stale: int
    failed: int
    cancelled: int
    updates: int
    ledger_balanced: bool
    wall_s: float
    tickets_per_s: float
    queue_mb_per_s: float
    driver_us_per_ticket: float
    driver_loop_us_per_ticket: float
    driver_cpu_share: float
    queue_us_per_ticket: float
    queue_loop_us_per_ticket: float
    queue_cpu_share: float
    queue_groups_mean: float
    queue_groups_max: int
    queue_mib_max: float
    queue_rss_mib: float
    lags: Mapping[str, int]
    actor_idle_share: float | None
    learner_idle_share: float | None
    driver_rss_mib: float
    driver_rss_growth_kib: float | None

    @property
    def cost_us(self) -> float:
        """Of driver and queue together, what the goal is about."""
        return self.driver_us_per_ticket + self.queue_us_per_ticket
