"""The lag bound: hand-worked numbers, and whole runs on a clock of their own."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from orchestration.staleness import capacity, is_stale


@pytest.mark.parametrize(
    ("version", "max_lag", "groups_per_update", "accepted", "running", "max_running", "expected"),
    [
        (0, 0, 16, 0, 0, 100, 16),  # the first batch and no more
        (0, 0, 16, 10, 6, 100, 0),
        (0, 1, 16, 10, 6, 100, 16),  # a lag of one: a second batch ahead
        (3, 1, 16, 48, 8, 100, 24),  # (3 + 1 + 1) * 16 - 56
        (3, 1, 16, 48, 8, 20, 12),  # room for 20 running alone
        (3, 1, 16, 48, 20, 20, 0),
        (0, 0, 16, 20, 0, 100, 0),  # more accepted than allowed is no debt
        (0, 0, 16, 0, 9, 4, 0),
        (9, 0, 1, 9, 0, 1, 1),
    ],
)
def test_capacity_by_hand(
    version: int, max_lag: int, groups_per_update: int, accepted: int, running: int, max_running: int, expected: int
) -> None:
    assert capacity(version, max_lag, groups_per_update, accepted, running, max_running) == expected


@pytest.mark.parametrize(
    ("oldest_version", "learner_version", "max_lag", "expected"),
    [(3, 3, 0, False), (2, 3, 0, True), (2, 3, 1, False), (1, 3, 1, True), (0, 0, 0, False), (-1, 9, 0, False)],
)
def test_is_stale_by_hand(oldest_version: int, learner_version: int, max_lag: int, expected: bool) -> None:
    assert is_stale(oldest_version, learner_version, max_lag) is expected


class Run:
    """A run of `updates` on a clock of its own; `duration` gives each group's sampling time, training takes 1."""

    def __init__(self, max_lag: int, duration: Callable[[], float], updates: int = 40, batch: int = 4) -> None:
        self.max_lag, self.duration, self.batch = max_lag, duration, batch
        self.version = self.issued = self.stale = self.peak_ahead = 0
        self.now = self.trained_until = 0.0
        self.lags: list[int] = []
        self.running: list[tuple[float, int, int]] = []  # done at, number, version at issue
        self.queue: deque[int] = deque()
        self.batch_versions: list[list[int]] = []
        while self.version < updates:
            self.issue()
            self.step()

    def issue(self) -> None:
        accepted = self.version * self.batch + len(self.queue)
        for _ in range(capacity(self.version, self.max_lag, self.batch, accepted, len(self.running), 64)):
            heapq.heappush(self.running, (self.now + self.duration(), self.issued, self.version))
            self.issued += 1
        self.peak_ahead = max(self.peak_ahead, len(self.running) + len(self.queue))

    def step(self) -> None:
        """The next thing to happen: an update, where a batch waits, else a group's arrival."""
        fresh = [v for v in self.queue if not is_stale(v, self.version, self.max_lag)]
        self.stale += len(self.queue) - len(fresh)
        self.queue = deque(fresh)
        if len(self.queue) >= self.batch and self.trained_until <= self.now:
            versions = [self.queue.popleft() for _ in range(self.batch)]
            self.batch_versions.append(versions)
            self.lags += [self.version - v for v in versions]
            self.version += 1
            self.trained_until = self.now + 1
        elif self.running and (len(self.queue) < self.batch or self.running[0][0] <= self.trained_until):
            self.now, _, version = heapq.heappop(self.running)
            self.queue.append(version)
        elif len(self.queue) >= self.batch:
            self.now = self.trained_until


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("duration", [0.1, 1.0, 7.0])
def test_groups_that_finish_in_their_order_never_exceed_the_lag(max_lag: int, duration: float) -> None:
    run = Run(max_lag, lambda: duration)
    assert max(run.lags) <= max_lag
    assert run.stale == 0
    assert run.peak_ahead <= (max_lag + 1) * 4


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_stragglers_are_dropped_and_no_trained_group_exceeds_the_lag(max_lag: int, seed: int) -> None:
    rng = random.Random(seed)
    run = Run(max_lag, lambda: rng.choice([0.2, 0.5, 1.0, 9.0]))
    assert max(run.lags) <= max_lag
    assert len(run.lags) == 40 * 4
    assert run.stale + len(run.lags) <= run.issued


@pytest.mark.parametrize("seed", range(5))
def test_lag_zero_is_exactly_synchronous(seed: int) -> None:
    rng = random.Random(seed)
    run = Run(0, lambda: rng.expovariate(1.0))
    assert run.batch_versions == [[version] * 4 for version in range(40)]
    assert run.stale == 0
    assert run.issued == 40 * 4


def test_a_lag_of_one_lets_sampling_run_beside_training() -> None:
    assert set(Run(1, lambda: 0.9).lags) == {0, 1}
