"""What the driver hears of a group."""

from __future__ import annotations

from dataclasses import replace

from actors.receipt import Receipt, all_cut, is_branch, own_solutions, receipt_of
from envs.trajectory import Group, GroupStats, PivotTrial, Role, Trajectory, Verdict
from tests.builders import TICKET, answer, observation, parallel_group, prompt, solution


def cut(group: Group, *numbers: int) -> Group:
    """The answers of these trajectories met their token limit."""
    trajectories = tuple(
        replace(t, segments=(*t.segments[:-1], replace(t.segments[-1], ended=False))) if i in numbers else t
        for i, t in enumerate(group.trajectories)
    )
    return replace(group, trajectories=trajectories)


def test_a_group_of_answers_that_were_all_cut() -> None:
    group = parallel_group(1.0, 0.0, 0.0)
    assert not all_cut(group)
    assert not all_cut(cut(group, 0, 2))
    assert all_cut(cut(group, 0, 1, 2))


SKETCHES = Trajectory((prompt(1, 2), answer(7, 8, role=Role.SKETCH)), Verdict.WRONG, 0.0)
FAILED = Trajectory((prompt(1),), Verdict.FAILED, 0.0, cause="boom")


def branch(parent: Trajectory, number: int, pivot: int, reward: float, *token_ids: int) -> Trajectory:
    """Another end of trajectory `number`, behind its first `pivot` segments."""
    verdict = Verdict.SOLVED if reward > 0 else Verdict.WRONG
    segments = (*parent.segments[:pivot], answer(*token_ids))
    return Trajectory(segments, verdict, reward, f"{token_ids}", parent=number, pivot=pivot)


def resampled_group() -> Group:
    """Sketches, a right answer, two wrong ones and a failed one; the second wrong one is resampled in its second turn.

    One branch is right, one wrong, one fails.
    """
    wrong = Trajectory((prompt(1), answer(2, 3), observation(4), answer(5)), Verdict.WRONG, -0.5, "wrong")
    branches = [branch(wrong, 3, 3, 1.0, 6, 7, 8), branch(wrong, 3, 3, 0.0, 6)]
    broken = replace(branches[1], verdict=Verdict.FAILED, cause="boom")
    trial = PivotTrial(parent=3, pivot=3, depth=2 / 3, features=(2 / 3,), branches=2, solved=1, gain=1.0)
    trajectories = (SKETCHES, solution(1.0), solution(0.0), wrong, FAILED, *branches, broken)
    return Group(TICKET, "dde", trajectories, (), GroupStats(env_steps=9), (trial,))


def test_branches_say_nothing_of_the_samplers_own_solutions() -> None:
    group = resampled_group()
    assert [is_branch(t, group) for t in group.trajectories] == [False] * 5 + [True] * 3
    assert own_solutions(group) == list(group.trajectories[1:4])
    assert receipt_of(group, "queued", "") == Receipt(
        TICKET,
        "queued",
        solutions=3,
        solved=1,
        failed_episodes=2,
        distinct_answers=2,
        distinct_solutions=1,
        reward_sum=0.5,
        sampled_tokens=2 + 2 + 2 + 3 + 3 + 1 + 1,
        stats=GroupStats(env_steps=9),
        pivots=group.pivots,
        covered=True,
        branch_tokens=3 + 1 + 1,
        trajectories=8,
    )


def test_solutions_with_a_parent_but_without_a_trial_count() -> None:
    """Lists and trees: what a solution took over from another one makes it no branch."""
    first = solution(0.0)
    second = branch(first, 0, 2, 1.0, 20)
    group = Group(TICKET, "sequential", (first, second), ())
    assert own_solutions(group) == [first, second]
    assert receipt_of(group, "queued", "").branch_tokens == 0
    # Of the same parent, but from another segment than the one that was tried.
    trial = PivotTrial(0, 1, 0.0, (0.0,), 1, 0, 0.0)
    assert own_solutions(replace(group, pivots=(trial,))) == [first, second]


def test_a_group_is_covered_by_a_branch_too() -> None:
    group = resampled_group()
    only_a_branch = (SKETCHES, solution(0.0), *group.trajectories[2:])
    of_it = receipt_of(replace(group, trajectories=only_a_branch), "queued", "")
    assert (of_it.covered, of_it.solved) == (True, 0)
    nobody = replace(group, trajectories=(SKETCHES, solution(0.0), FAILED), pivots=())
    assert not receipt_of(nobody, "queued", "").covered


def test_right_answers_travel_only_where_prompts_have_them_in_common() -> None:
    group = resampled_group()
    alone, common = receipt_of(group, "queued", ""), receipt_of(group, "queued", "", targets=20)
    assert (alone.targets, alone.question, alone.found) == (None, "", ())
    assert (common.targets, common.found) == (20, ("(6, 7, 8)", "2 tokens"))
    assert len(common.question) == 16


def test_questions_are_told_apart_by_their_prompts() -> None:
    def question(first: Trajectory) -> str:
        return receipt_of(Group(TICKET, "parallel", (first, solution(0.0)), ()), "queued", "", targets=2).question

    assert question(solution(1.0, tokens=3)) == question(solution(0.0))
    assert question(SKETCHES) != question(solution(0.0))
    assert receipt_of(Group(TICKET, "parallel", (), ()), "failed", "nothing", targets=2).question == ""
