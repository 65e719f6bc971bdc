"""Held-out tickets on an actor, without its engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest

from actors.rollout import EnvironmentFailure, Sampler
from actors.rollout_actor import RolloutActor
from actors.samplers.parallel import ParallelSampler
from configs.schema import RunConfig
from envs.codec import decode_group
from envs.trajectory import Group, Ticket, Verdict
from orchestration.evaluation import held_out
from orchestration.tickets import held_out_tickets
from tests.builders import parallel_group

TICKETS = held_out_tickets(3, "frozen_lake")


def actor_that(answer: Callable[[Ticket], Group], monkeypatch: pytest.MonkeyPatch) -> RolloutActor:
    """An actor of two attempts, each of which is `answer`."""

    async def sample_group(_: RolloutActor, ticket: Ticket, sampler: Sampler) -> Group:
        return answer(ticket)

    actor = object.__new__(RolloutActor)
    actor._config = RunConfig.model_validate({"rollout": {"max_attempts": 2}})
    monkeypatch.setattr(RolloutActor, "_sample_group", sample_group)
    return actor


async def test_an_episode_that_cannot_begin_is_a_failed_one_and_the_others_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def answer(ticket: Ticket) -> Group:
        asked.append(ticket.index)
        if ticket == TICKETS[1]:
            raise EnvironmentFailure("frozen_lake raised ValueError: no map")
        return replace(parallel_group(1.0, 0.0), ticket=ticket)

    encoded = await actor_that(answer, monkeypatch).sample_held_out(TICKETS, 2, None)
    assert [asked.count(ticket.index) for ticket in TICKETS] == [1, 2, 1]
    groups = [decode_group(data) for data in encoded]
    assert [group.ticket for group in groups] == TICKETS
    [failed] = groups[1].trajectories
    assert (failed.verdict, failed.cause) == (Verdict.FAILED, "frozen_lake raised ValueError: no map")
    judged = held_out(groups)
    assert [episode.index for episode in judged.episodes] == [TICKETS[0].index, TICKETS[2].index]
    assert (judged.unjudged, judged.cause) == (1, "frozen_lake raised ValueError: no map")


async def test_a_second_attempt_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [EnvironmentFailure("busy")]

    def answer(ticket: Ticket) -> Group:
        if failures:
            raise failures.pop()
        return replace(parallel_group(1.0), ticket=ticket)

    [data] = await actor_that(answer, monkeypatch).sample_held_out(TICKETS[:1], 1, None)
    assert decode_group(data).trajectories[0].verdict is Verdict.SOLVED


async def test_a_receipt_tells_the_workers_that_were_replaced_since_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(ticket: Ticket) -> Group:
        raise EnvironmentFailure("frozen_lake did not answer")

    actor = actor_that(answer, monkeypatch)
    actor._sampler = ParallelSampler(2)
    actor._workers = Mock(newly_replaced=Mock(side_effect=[2, 0]))
    receipts = [await actor.sample(ticket) for ticket in TICKETS[:2]]
    assert [(r.state, r.cause, r.replaced_workers) for r in receipts] == [
        ("failed", "frozen_lake did not answer", 2),
        ("failed", "frozen_lake did not answer", 0),
    ]


async def test_what_is_no_trouble_of_the_environment_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(ticket: Ticket) -> Group:
        raise RuntimeError("the engine stopped")

    with pytest.raises(RuntimeError, match="the engine stopped"):
        await actor_that(answer, monkeypatch).sample_held_out(TICKETS[:1], 1, None)
