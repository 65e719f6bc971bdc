"""Evaluation figures against brute force and by hand, and who is asked for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from configs.schema import RunConfig
from envs.codec import encode_group
from envs.trajectory import Group, Ticket, Trajectory, Verdict
from orchestration.evaluate import PAYLOADS_KEPT, EvaluationError, evaluate, gain_interval, pass_at_k, summarise
from orchestration.tickets import held_out_tickets
from tests.builders import parallel_group

# --- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_solved_one(samples: int) -> None:
    for solved in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(combinations([True] * solved + [False] * (samples - solved), k))
            assert pass_at_k(samples, solved, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("k", [0, 5, -1])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match=rf"pass@{k} needs at least {k} samples, there are 4"):
        pass_at_k(4, 2, k)


def test_the_gains_interval_by_hand() -> None:
    """Gains 0.5, 0, 0.25, 0.25: mean 0.25, variance (0.0625 * 2) / 3, standard error sqrt(0.125 / 3 / 4) = 0.10206."""
    low, high = gain_interval(numbered(0.0, 0.5, 0.25, 0.5), numbered(0.5, 0.5, 0.5, 0.75))
    assert low == pytest.approx(0.25 - 1.96 * 0.102062, abs=1e-5)
    assert high == pytest.approx(0.25 + 1.96 * 0.102062, abs=1e-5)


def test_the_gains_interval_compares_the_same_episodes() -> None:
    """Easy and hard episodes that all gain alike leave no doubt."""
    assert gain_interval(numbered(0.0, 0.5, 0.875), numbered(0.125, 0.625, 1.0)) == (0.125, 0.125)


def failed() -> Trajectory:
    return Trajectory((), Verdict.FAILED, 0.0, cause="boom")


def solved_by(*answers: str) -> list[Trajectory]:
    """One trajectory an answer: solved, or wrong where the answer is empty."""
    [template] = parallel_group(1.0).trajectories
    return [replace(template, answer=a, verdict=Verdict.SOLVED if a else Verdict.WRONG) for a in answers]


def episode(index: int, trajectories: Sequence[Trajectory]) -> Group:
    return Group(Ticket(index, "scripted", 1), "parallel", tuple(trajectories), ())


def numbered(*shares: float) -> dict[int, float]:
    return dict(enumerate(shares))


def test_a_summary_by_hand() -> None:
    groups = [
        episode(2, solved_by("", "", "", "")),
        episode(0, solved_by("up", "up", "left", "")),
        episode(1, solved_by("up", "", "", "")),
    ]
    evaluation = summarise(groups, [b"one", b"two"])
    assert list(evaluation.by_episode.items()) == [
        (0, 0.75),
        (1, 0.25),
        (2, 0.0),
    ]  # in the order of tickets, to be compared with another time
    assert evaluation.success == pytest.approx(1 / 3)
    assert evaluation.pass_at_k == {4: pytest.approx(2 / 3)}
    assert evaluation.distinct_solutions == pytest.approx((2 + 1 + 0) / 3)
    assert evaluation.sampled_tokens == 3 * 4 * 2
    assert evaluation.payloads == (b"one", b"two")


def test_failed_episodes_are_left_out_of_the_shares() -> None:
    """Two of three that could be judged are solved: not two of four. pass@k takes the episodes that are whole."""
    groups = [episode(0, [*solved_by("up", "up", ""), failed()]), episode(1, solved_by("up", "", "", ""))]
    evaluation = summarise(groups, [])
    assert list(evaluation.by_episode.values()) == pytest.approx([2 / 3, 0.25])
    assert evaluation.pass_at_k == {4: 1.0}


def test_an_episode_that_always_failed_cannot_be_judged() -> None:
    evaluation = summarise([episode(0, solved_by("up")), episode(1, [failed(), failed()])], [])
    assert (evaluation.success, evaluation.unjudged, evaluation.cause) == (1.0, 1, "boom")
    assert evaluation.by_episode == {0: 1.0}
    with pytest.raises(EvaluationError, match="the environment failed in every held-out episode: boom"):
        summarise([episode(1, [failed(), failed()])], [])


def test_the_gain_is_of_episodes_judged_both_times() -> None:
    assert gain_interval({0: 0.0, 1: 0.5, 2: 1.0}, {0: 0.5, 2: 1.0, 3: 0.0}) == gain_interval(
        {0: 0, 2: 1}, {0: 0.5, 2: 1}
    )


# --- asking the actors -----------------------------------------------------------------------------------------------

Answer = Callable[[Sequence[Ticket], int], list[bytes]]


class Actor:
    """`actor.sample_plain.remote(tickets, samples)`, as Ray has it."""

    def __init__(self, answer: Answer, delay_s: float = 0.0) -> None:
        self.asked: list[list[Ticket]] = []
        self.sample_plain, self._answer, self._delay_s = self, answer, delay_s

    async def remote(self, tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        self.asked.append(list(tickets))
        await asyncio.sleep(self._delay_s)
        return self._answer(tickets, samples)


def half(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
    """Every other sample of episodes with an even number is solved, all of the others."""
    rewards = {0: [1.0, 0.0] * (samples // 2), 1: [1.0] * samples}
    return [encode_group(replace(parallel_group(*rewards[t.index % 2]), ticket=t)) for t in tickets]


def configured(episodes: int, timeout_s: float = 10.0) -> RunConfig:
    return RunConfig.model_validate({"eval": {"episodes": episodes, "samples": 4, "timeout_s": timeout_s}})


async def test_all_held_out_episodes_are_sampled_once_by_all_actors() -> None:
    actors: list[Any] = [Actor(half), Actor(half)]
    evaluation = await evaluate(configured(70), actors)
    asked = [ticket for actor in actors for chunk in actor.asked for ticket in chunk]
    assert sorted(asked, key=lambda t: t.index) == held_out_tickets(70, "frozen_lake")
    assert [[len(chunk) for chunk in actor.asked] for actor in actors] == [[16, 16, 6], [16, 16]]
    assert tuple(evaluation.by_episode.values()) == (0.5, 1.0) * 35
    assert evaluation.success == 0.75
    assert len(evaluation.payloads) == PAYLOADS_KEPT < 70


async def test_an_actor_without_episodes_is_left_alone() -> None:
    actors: list[Any] = [Actor(half), Actor(half)]
    evaluation = await evaluate(configured(3), actors)
    assert [len(actor.asked) for actor in actors] == [1, 0]
    assert len(evaluation.by_episode) == 3


async def test_an_evaluation_that_takes_too_long_says_so() -> None:
    actors: list[Any] = [Actor(half), Actor(half, delay_s=5.0)]
    with pytest.raises(EvaluationError, match=r"not evaluated within 0.05 s \(eval.timeout_s\)"):
        await evaluate(configured(40, timeout_s=0.05), actors)


async def test_what_fails_on_an_actor_is_not_hidden() -> None:
    def broken(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        raise RuntimeError("the engine stopped")

    actors: list[Any] = [Actor(half), Actor(broken)]
    with pytest.raises(RuntimeError, match="the engine stopped"):
        await evaluate(configured(40), actors)
