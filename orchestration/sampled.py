"""What was sampled since the last update, summed over receipts."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.receipt import Receipt
from envs.trajectory import GroupStats, PivotTrial

SUMMED = (
    "solutions", "solved", "failed_episodes", "distinct_answers", "distinct_solutions", "reward_sum", "covered",
    "branch_tokens", "trajectories",
)  # fmt: skip
DEPTH_BINS = 4  # of equal width, over depths 0 to 1


@dataclass(frozen=True, slots=True)
class PivotSums:
    """Over pivots with a judged branch. recovered: those a branch of which solved it. gain, depth: sums, as of a trial.

    in_bin, recovered_in_bin: (DEPTH_BINS,) both counts by depth: [0, .25), [.25, .5), [.5, .75), [.75, 1].
    """

    pivots: int = 0
    recovered: int = 0
    gain: float = 0.0
    depth: float = 0.0
    in_bin: tuple[int, ...] = (0,) * DEPTH_BINS
    recovered_in_bin: tuple[int, ...] = (0,) * DEPTH_BINS

    def plus(self, trial: PivotTrial) -> PivotSums:
        if not trial.branches:
            return self
        recovered = trial.solved > 0
        hit = [i == min(int(trial.depth * DEPTH_BINS), DEPTH_BINS - 1) for i in range(DEPTH_BINS)]
        return PivotSums(
            self.pivots + 1,
            self.recovered + recovered,
            self.gain + trial.gain,
            self.depth + trial.depth,
            tuple(n + here for n, here in zip(self.in_bin, hit, strict=True)),
            tuple(n + (here and recovered) for n, here in zip(self.recovered_in_bin, hit, strict=True)),
        )

    @property
    def recovered_share(self) -> float | None:
        """None without pivots, as the means below."""
        return self.recovered / self.pivots if self.pivots else None

    @property
    def gain_mean(self) -> float | None:
        return self.gain / self.pivots if self.pivots else None

    @property
    def depth_mean(self) -> float | None:
        return self.depth / self.pivots if self.pivots else None

    @property
    def recovered_by_depth(self) -> list[float | None]:
        """Share of recovered ones of each bin; None where it has no pivot."""
        return [recovered / n if n else None for n, recovered in zip(self.in_bin, self.recovered_in_bin, strict=True)]


@dataclass
class Sampled:
    """Sums over the groups that did not fail, filtered ones too. `failed`: tickets given up; of them, and of attempts
    that are made again, only steps, sampled tokens and replaced environment workers count.

    covered: groups with an episode that solved it. targets: right answers of a question, None where each episode has
    its own; questions: those that were asked; found: (question, right answer), each once.
    """

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
    covered: int = 0
    branch_tokens: int = 0
    trajectories: int = 0
    replaced_workers: int = 0
    sampled_tokens: int = 0
    pivots: PivotSums = PivotSums()
    targets: int | None = None
    questions: frozenset[str] = frozenset()
    found: frozenset[tuple[str, str]] = frozenset()

    def add(self, receipt: Receipt) -> None:
        if receipt.state == "failed":
            self.failed += 1
            self.add_cost(receipt)
            return
        self.groups += 1
        self.sampled_tokens += receipt.sampled_tokens
        self.replaced_workers += receipt.replaced_workers
        self.without_signal += not receipt.has_signal
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))
        self.stats = self.stats + receipt.stats
        for trial in receipt.pivots:
            self.pivots = self.pivots.plus(trial)
        if receipt.targets is not None:
            self.targets = receipt.targets
            self.questions |= {receipt.question}
            self.found |= {(receipt.question, answer) for answer in receipt.found}

    def add_cost(self, receipt: Receipt) -> None:
        """What an attempt has cost that comes to nothing."""
        self.sampled_tokens += receipt.sampled_tokens
        self.replaced_workers += receipt.replaced_workers
        self.stats = self.stats + GroupStats(env_steps=receipt.stats.env_steps)

    @property
    def coverage(self) -> float | None:
        """Share of the right answers of the questions asked that were found; where each episode has its own, share of
        the groups in which one was. None without groups.
        """
        if not self.groups:
            return None
        if self.targets is None:
            return self.covered / self.groups
        return len(self.found) / (self.targets * len(self.questions))


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
