"""Figures of one update's span of time, and their sums over the whole run."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import StopSettings
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from orchestration.sampled import Sampled


@dataclass(frozen=True, slots=True)
class Spans:
    """Seconds since the update before: in all, waiting for a batch, engines idle and paused (means), broadcasting.

    sampled_tokens: by all engines, of failed and dropped work too. cache_hit_share: of the prompts' tokens.
    """

    wall_s: float
    learner_waits_s: float
    actors_idle_s: float
    actors_paused_s: float
    sync: SyncTimes
    sampled_tokens: int
    cache_hit_share: float | None


@dataclass
class Totals:
    """Sums over the whole run, for the summary and for what metrics.jsonl says cumulatively."""

    training_s: float = 0.0
    learner_waits_s: float = 0.0
    learner_busy_s: float = 0.0
    actors_idle_s: float = 0.0
    sync_s: float = 0.0
    sampled_tokens: int = 0
    learner_tokens: int = 0
    lag_max: int = 0
    own_tokens: int = 0
    own_abs_diff: float = 0.0
    own_abs_diff_max: float = 0.0
    env_steps: int = 0
    branch_tokens: int = 0
    groups: int = 0
    groups_without_signal: int = 0
    sketches: int = 0
    duplicate_sketches: int = 0
    beyond_stop: int = 0  # updates in a row beyond the bound of `stop`
    stop: StopSettings | None = None  # the rule that count is of: under another one it says nothing

    def add(self, sums: UpdateSums, spans: Spans, lag_max: int) -> None:
        self.training_s += spans.wall_s
        self.learner_waits_s += spans.learner_waits_s
        self.learner_busy_s += sums.seconds
        self.actors_idle_s += spans.actors_idle_s
        self.sync_s += spans.sync.total_s
        self.sampled_tokens += spans.sampled_tokens
        self.learner_tokens += sums.forward_tokens
        self.lag_max = max(self.lag_max, lag_max)
        self.compare(sums)

    def count(self, sampled: Sampled) -> None:
        """What was sampled since the update before."""
        self.env_steps += sampled.stats.env_steps
        self.branch_tokens += sampled.branch_tokens
        self.groups += sampled.groups
        self.groups_without_signal += sampled.without_signal
        self.sketches += sampled.stats.sketches + sampled.stats.resampled_sketches
        self.duplicate_sketches += sampled.stats.duplicate_sketches

    def beyond(self, stop: StopSettings | None) -> int:
        """Updates in a row beyond the bound of this rule, as far as they were counted under it."""
        return self.beyond_stop if stop == self.stop else 0

    def compare(self, sums: UpdateSums) -> None:
        self.own_tokens += sums.own_tokens
        self.own_abs_diff += sums.own_abs_diff
        self.own_abs_diff_max = max(self.own_abs_diff_max, sums.own_abs_diff_max)


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """Spent on training between the last update's line and the checkpoint; the next line's.

    tokens: of tickets that ended, as those in flight are sampled again. Seconds: in all, and waiting for a batch.
    """

    tokens: int = 0
    wall_s: float = 0.0
    learner_waits_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RecorderState:
    """What a checkpoint keeps: seconds since the run's start, sums so far, and where metrics.jsonl ended, bytes.

    The sums are those of the last update: what was spent since does not end a run before its next update.
    """

    elapsed_s: float
    totals: Totals
    metrics_bytes: int
    unrecorded: Unrecorded = Unrecorded()
