"""What the driver hears of a ticket; the group itself goes to the queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from configs.schema import GrpoSettings
from envs.trajectory import Group, GroupStats, PivotTrial, Ticket, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one attempt at a ticket. `state`: queued, filtered (no signal) or failed (with its cause).

    solutions ... reward_sum: of the sampler's own solutions that were judged (`own_solutions`). covered: whether any
    episode solved it, branches too. targets: how many right answers the question has for all episodes alike; None
    where each episode has its own, and then question and found stay empty. question: short name of the prompt.
    found: the right answers of all episodes, branches too. branch_tokens: of sampled_tokens. queue: the name of the
    replay queue the group was put into. replaced_workers: environment workers of the actor, since its receipt before.
    trajectories: all of the group's, of any kind. actor_lost: the actor died or was given up while it sampled the
    ticket.
    """

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
    pivots: tuple[PivotTrial, ...] = ()
    covered: bool = False
    targets: int | None = None
    question: str = ""
    found: tuple[str, ...] = ()
    branch_tokens: int = 0
    queue: str = ""
    actor_lost: bool = False
    replaced_workers: int = 0
    trajectories: int = 0


def verdict_on(group: Group, grpo: GrpoSettings) -> tuple[str, str]:
    """The state of a receipt, and why it is not queued."""
    if not group.rows:
        causes = [t.cause for t in group.trajectories if t.verdict is Verdict.FAILED]
        return "failed", causes[0] if causes else "nothing was sampled"
    if grpo.overlong.mask_truncated and all_cut(group):
        return "filtered", "nothing to train: every answer was cut at its token limit"
    if grpo.drop_zero_signal and not group.has_signal:
        return "filtered", "no signal: all rewards are equal"
    return "queued", ""


def receipt_of(group: Group, state: str, cause: str, targets: int | None = None) -> Receipt:
    """`targets`: the environment's `target_count`."""
    own = own_solutions(group)
    solved = [t for t in own if t.verdict is Verdict.SOLVED]
    right = {t.answer for t in group.trajectories if t.verdict is Verdict.SOLVED}
    return Receipt(
        group.ticket,
        state,
        cause,
        has_signal=group.has_signal,
        solutions=len(own),
        solved=len(solved),
        failed_episodes=sum(t.verdict is Verdict.FAILED for t in group.trajectories),
        distinct_answers=len({t.answer for t in own}),
        distinct_solutions=len({t.answer for t in solved}),
        reward_sum=sum(t.reward for t in own),
        sampled_tokens=group.sampled_tokens,
        stats=group.stats,
        pivots=group.pivots,
        covered=bool(right),
        targets=targets,
        question="" if targets is None else question_of(group),
        found=() if targets is None else tuple(sorted(right)),
        trajectories=len(group.trajectories),
        branch_tokens=sum(t.sampled_tokens for t in group.trajectories if is_branch(t, group)),
    )


def own_solutions(group: Group) -> list[Trajectory]:
    """What the sampler itself made of the prompt, judged: not lists of sketches, branches and failed episodes."""
    return [
        t for t in group.trajectories if t.is_solution and t.verdict is not Verdict.FAILED and not is_branch(t, group)
    ]


def is_branch(trajectory: Trajectory, group: Group) -> bool:
    """Whether it was resampled from a pivot of a failed trajectory: some trial of the group is of its parent and pivot.

    Such episodes begin where another one went wrong, so they say nothing of how often the policy solves the prompt.
    A parent alone makes no branch: the solutions of a list and the leaves of a tree have one too, and count.
    """
    return any((t.parent, t.pivot) == (trajectory.parent, trajectory.pivot) for t in group.pivots)


def all_cut(group: Group) -> bool:
    """Whether every credit of every row has a segment that was cut at its token limit."""
    return all(
        any(not s.ended for s in group.trajectories[row.trajectory].segments[credit.first : credit.last])
        for row in group.rows
        for credit in row.credits
    )


def question_of(group: Group) -> str:
    """Equal for groups sampled behind the same prompt, such as one map of several; empty where none was known."""
    first = next((t.segments[0] for t in group.trajectories if t.segments), None)
    return "" if first is None else blake2b(first.token_ids.tobytes(), digest_size=8).hexdigest()
