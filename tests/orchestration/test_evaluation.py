"""Evaluation figures against brute force and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import log

import numpy as np
import pytest

from envs.trajectory import Group, GroupStats, Role, Ticket, Trajectory, Verdict
from orchestration.evaluation import (
    LISTS_APART,
    EvaluationError,
    Judged,
    Sample,
    chances,
    coverages,
    distinct_at_k,
    doublings,
    entropy,
    first_k,
    gain_interval,
    held_out,
    pass_at_k,
    summarise,
)
from tests.builders import answer, parallel_group, prompt

# --- builders --------------------------------------------------------------------------------------------------------


def failed() -> Trajectory:
    return Trajectory((), Verdict.FAILED, 0.0, cause="boom")


def solved_by(*answers: str, first_token: int = 1) -> list[Trajectory]:
    """One trajectory an answer: solved, or wrong where the answer is empty. All of two sampled tokens."""
    [template] = parallel_group(1.0).trajectories
    own = replace(template, segments=(prompt(first_token, 2, 3), *template.segments[1:]))
    return [replace(own, answer=a, verdict=Verdict.SOLVED if a else Verdict.WRONG) for a in answers]


def episode(index: int, trajectories: Sequence[Trajectory], env_steps: int = 0) -> Group:
    return Group(
        Ticket(index, "scripted", 1), "parallel", tuple(trajectories), (), stats=GroupStats(env_steps=env_steps)
    )


def samples(*answers: str) -> tuple[Sample, ...]:
    """Solved ones say what they are, wrong ones are empty."""
    return tuple(Sample(bool(a), a) for a in answers)


def judged(*lists: Sequence[Sample], question: str = "") -> Judged:
    return Judged(0, question, tuple(tuple(one) for one in lists))


def numbered(*shares: float) -> dict[int, float]:
    return dict(enumerate(shares))


# --- curves against brute force --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_solved_one(n: int) -> None:
    for solved in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([True] * solved + [False] * (n - solved), k))
            assert pass_at_k(n, solved, k) == pytest.approx(sum(map(any, draws)) / len(draws))
            assert chances(n, solved)[k - 1] == pass_at_k(n, solved, k)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match=rf"pass@{k} needs at least {k} samples, there are 4"):
        pass_at_k(4, 2, k)


def test_distinct_at_k_is_the_mean_over_all_draws() -> None:
    drawn = samples("up", "", "left", "up", "", "up", "down")
    for k in range(1, 8):
        counts = [len({s.answer for s in draw if s.solved}) for draw in combinations(drawn, k)]
        assert distinct_at_k(drawn)[k - 1] == pytest.approx(np.mean(counts))


def test_distinct_at_k_of_nothing_solved_is_zero() -> None:
    assert distinct_at_k(samples("", "")).tolist() == [0.0, 0.0]


def test_wrong_answers_are_not_different_solutions() -> None:
    assert distinct_at_k([Sample(False, "up"), Sample(True, "left")]).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("most", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_doublings_end_with_all_samples(most: int, ks: list[int]) -> None:
    assert doublings(most) == ks


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_first_k_of_a_list_by_hand() -> None:
    """Two lists of 3: the first finds at 2 and again at 3, the second something at 1, and ended after 2."""
    solved, distinct = first_k(judged(samples("", "up", "left"), samples("up", "up")), 3)
    assert solved.tolist() == [0.5, 1.0, 1.0]
    assert distinct.tolist() == [0.5, 1.0, 1.5]


def test_lists_of_an_episode_are_put_together() -> None:
    groups = [
        episode(7 + LISTS_APART, solved_by("left", "")),
        episode(8, solved_by("down")),
        episode(7, solved_by("up", "up")),
    ]
    first, second = held_out(groups).episodes
    assert (first.index, second.index) == (7, 8)
    assert first.lists == (samples("up", "up"), samples("left", ""))
    assert first.samples == [*samples("up", "up", "left", "")]


def test_sketches_are_no_samples_but_cost_tokens() -> None:
    sketches = Trajectory((prompt(1), answer(5, 6, 7, role=Role.SKETCH)), Verdict.WRONG, 0.0)
    sampled = held_out([episode(0, [sketches, *solved_by("up", "")], env_steps=4)])
    assert sampled.episodes[0].lists == (samples("up", ""),)
    assert (sampled.sampled_tokens, sampled.env_steps) == (3 + 2 * 2, 4)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    """Shares 1/2, 1/4, 1/4: log 2 / 2 + 2 * log 4 / 4 = 1.5 log 2."""
    assert entropy(["up", "left", "up", "down"]) == pytest.approx(1.5 * log(2))
    assert entropy(["up"] * 5) == 0.0
    assert entropy("abcdefgh") == pytest.approx(log(8))


def test_coverage_of_common_targets_is_of_all_episodes_of_a_question() -> None:
    """Question a: up, left in three episodes; question b: up; of 4 targets each."""
    episodes = [
        judged(samples("up", ""), question="a"),
        judged(samples("up", "left"), question="a"),
        judged(samples("", ""), question="a"),
        judged(samples("up"), question="b"),
    ]
    assert coverages(episodes, targets=4).tolist() == [2 / 4, 1 / 4]


def test_coverage_without_common_targets_is_of_solved_episodes() -> None:
    episodes = [judged(samples("up", "")), judged(samples("", "")), judged(samples(""), samples("left"))]
    assert coverages(episodes, targets=None).tolist() == [1.0, 0.0, 1.0]


# --- a run's figures -------------------------------------------------------------------------------------------------


def test_the_gains_interval_by_hand() -> None:
    """Gains 0.5, 0, 0.25, 0.25: mean 0.25, variance (0.0625 * 2) / 3, standard error sqrt(0.125 / 3 / 4) = 0.10206."""
    low, high = gain_interval(numbered(0.0, 0.5, 0.25, 0.5), numbered(0.5, 0.5, 0.5, 0.75))
    assert low == pytest.approx(0.25 - 1.96 * 0.102062, abs=1e-5)
    assert high == pytest.approx(0.25 + 1.96 * 0.102062, abs=1e-5)


def test_the_gains_interval_compares_the_same_episodes() -> None:
    """Easy and hard episodes that all gain alike leave no doubt."""
    assert gain_interval(numbered(0.0, 0.5, 0.875), numbered(0.125, 0.625, 1.0)) == (0.125, 0.125)


def test_the_gain_is_of_episodes_judged_both_times() -> None:
    assert gain_interval({0: 0.0, 1: 0.5, 2: 1.0}, {0: 0.5, 2: 1.0, 3: 0.0}) == gain_interval(
        {0: 0, 2: 1}, {0: 0.5, 2: 1}
    )


def test_a_summary_by_hand() -> None:
    groups = [
        episode(2, solved_by("", "", "", "")),
        episode(0, solved_by("up", "up", "left", ""), env_steps=4),
        episode(1, solved_by("up", "", "", ""), env_steps=5),
    ]
    evaluation = summarise(groups, [b"one", b"two"], None)
    assert list(evaluation.by_episode.items()) == [
        (0, 0.75),
        (1, 0.25),
        (2, 0.0),
    ]  # in the order of tickets, to be compared with another time
    assert evaluation.success == pytest.approx(1 / 3)
    # k = 2: episode 0 fails with 0 of 6 pairs, episode 1 with 3 of 6.
    assert evaluation.pass_at_k == {1: pytest.approx(1 / 3), 2: pytest.approx((1 + 0.5) / 3), 4: pytest.approx(2 / 3)}
    assert evaluation.distinct_solutions == pytest.approx((2 + 1 + 0) / 3)
    # Shares 1/2, 1/4, 1/4; 1/4, 3/4; 1.
    assert evaluation.answer_entropy == pytest.approx((1.5 * log(2) + 0.25 * log(4) + 0.75 * log(4 / 3)) / 3)
    assert evaluation.coverage == pytest.approx(2 / 3)
    assert (evaluation.sampled_tokens, evaluation.env_steps) == (3 * 4 * 2, 9)
    assert evaluation.payloads == (b"one", b"two")


def test_a_summary_of_common_targets() -> None:
    """Both episodes ask the same: up and left of 5; a third one asks something else: nothing of 5."""
    groups = [
        episode(0, solved_by("up", "")),
        episode(1, solved_by("up", "left")),
        episode(2, solved_by("", "", first_token=9)),
    ]
    assert summarise(groups, [], 5).coverage == pytest.approx((2 / 5 + 0) / 2)


def test_failed_episodes_are_left_out_of_the_shares() -> None:
    """Two of three that could be judged are solved: not two of four. pass@k takes episodes with at least k samples."""
    groups = [episode(0, [*solved_by("up", "up", ""), failed()]), episode(1, solved_by("up", "", "", ""))]
    evaluation = summarise(groups, [], None)
    assert list(evaluation.by_episode.values()) == pytest.approx([2 / 3, 0.25])
    assert evaluation.pass_at_k == {1: pytest.approx((2 / 3 + 0.25) / 2), 2: pytest.approx((1 + 0.5) / 2), 4: 1.0}


def test_a_list_that_failed_before_its_prompt_was_known_changes_no_question() -> None:
    groups = [
        episode(0, [failed()]),
        episode(LISTS_APART, solved_by("up")),
        episode(1, solved_by("left")),
    ]
    sampled = held_out(groups)
    assert len({one.question for one in sampled.episodes}) == 1
    assert coverages(sampled.episodes, targets=4).tolist() == [2 / 4]


def test_an_episode_that_always_failed_cannot_be_judged() -> None:
    evaluation = summarise([episode(0, solved_by("up")), episode(1, [failed(), failed()])], [], None)
    assert (evaluation.success, evaluation.unjudged, evaluation.cause) == (1.0, 1, "boom")
    assert evaluation.by_episode == {0: 1.0}
    with pytest.raises(EvaluationError, match="the environment failed in every held-out episode: boom"):
        summarise([episode(1, [failed(), failed()])], [], None)
