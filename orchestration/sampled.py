"""What was sampled since the last update, summed over receipts."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.receipt import Receipt
from envs.trajectory import GroupStats

SUMMED = ("solutions", "solved", "failed_episodes", "distinct_answers", "distinct_solutions", "reward_sum")


@dataclass
class Sampled:
    """Sums over the groups that did not fail, filtered ones too. `failed`: tickets given up."""

    groups: int = 0
    failed: int = 0
    without_signal: int = 0
    solutions: int = 0
    solved: int = 0
    failed_episodes: int = 0
    distinct_answers: int = 0
    distinct_solutions: int = 0
    reward_sum: float = 0.0
    stats: GroupStats = field(default_factory=GroupStats)

    def add(self, receipt: Receipt) -> None:
        if receipt.state == "failed":
            self.failed += 1
            return
        self.groups += 1
        self.without_signal += not receipt.has_signal
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))
        self.stats = self.stats + receipt.stats


@dataclass(frozen=True, slots=True)
class DispatchState:
    """What a checkpoint keeps of the dispatcher beside the ledger.

    next_index: of the ticket to be issued next. settled: tickets ended since the last batch. rounds: of refills begun
    for the next batch. sampled: sums over receipts since the last update.
    """

    next_index: int
    settled: int
    rounds: int
    sampled: Sampled
