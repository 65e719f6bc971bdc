"""What the driver hears of a ticket; the group itself goes to the queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.trajectory import Group, GroupStats, Ticket, Verdict


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one attempt at a ticket. `state`: queued, filtered (no signal) or failed (with its cause)."""

    ticket: Ticket
    state: str
    cause: str = ""
    has_signal: bool = False
    solutions: int = 0
    solved: int = 0
    failed_episodes: int = 0
    distinct_answers: int = 0
    distinct_solutions: int = 0
    reward_sum: float = 0.0
    sampled_tokens: int = 0
    stats: GroupStats = field(default_factory=GroupStats)


def receipt_of(group: Group, state: str, cause: str) -> Receipt:
    solutions = [t for t in group.trajectories if t.is_solution and t.verdict is not Verdict.FAILED]
    solved = [t for t in solutions if t.verdict is Verdict.SOLVED]
    return Receipt(
        group.ticket,
        state,
        cause,
        has_signal=group.has_signal,
        solutions=len(solutions),
        solved=len(solved),
        failed_episodes=sum(t.verdict is Verdict.FAILED for t in group.trajectories),
        distinct_answers=len({t.answer for t in solutions}),
        distinct_solutions=len({t.answer for t in solved}),
        reward_sum=sum(t.reward for t in solutions),
        sampled_tokens=group.sampled_tokens,
        stats=group.stats,
    )


def all_cut(group: Group) -> bool:
    """Whether every credit of every row has a segment that was cut at its token limit."""
    return all(
        any(not s.ended for s in group.trajectories[row.trajectory].segments[credit.first : credit.last])
        for row in group.rows
        for credit in row.credits
    )
