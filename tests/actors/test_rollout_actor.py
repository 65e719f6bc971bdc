"""An actor without its engine: held-out tickets, what becomes of a group, and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError

from actors.engine import EngineError
from actors.failures import EnvironmentFailure
from actors.held_time import HeldTime
from actors.outbox import Outbox
from actors.rollout import Sampler
from actors.rollout_actor import RolloutActor
from actors.samplers.build import build_sampler
from actors.samplers.parallel import ParallelSampler
from configs.schema import QueueSettings, RunConfig
from envs.codec import decode_group
from envs.trajectory import Group, Ticket, Verdict
from orchestration.evaluation import held_out
from orchestration.replay_queue import ReplayQueue
from orchestration.tickets import held_out_tickets, training_ticket
from tests.builders import parallel_group

TICKETS = held_out_tickets(3, "frozen_lake")


def actor_that(answer: Callable[[Ticket], Group], monkeypatch: pytest.MonkeyPatch) -> RolloutActor:
    """An actor of two attempts, each of which is `answer`."""

    async def sample_group(_: RolloutActor, ticket: Ticket, sampler: Sampler) -> Group:
        return answer(ticket)

    actor = object.__new__(RolloutActor)
    actor._config, actor._held_time = RunConfig.model_validate({"rollout": {"max_attempts": 2}}), HeldTime()
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


# --- tickets ---------------------------------------------------------------------------------------------------------

TICKET = training_ticket(0, 5, "frozen_lake")


class Queue:
    """`queue.put.remote(data, era)`, as Ray has it. gone: it has died for good."""

    def __init__(self, gone: bool = False) -> None:
        self.queue, self.put, self._gone = ReplayQueue(QueueSettings()), self, gone

    async def remote(self, data: bytes, era: int) -> str:
        if self._gone:
            raise RayActorError(error_msg="The actor died: out of memory")
        return await self.queue.put(data, era)


def sampling_actor(monkeypatch: pytest.MonkeyPatch, queue: Queue, *rewards: float) -> RolloutActor:
    """An actor whose samples are rewarded so."""
    actor = actor_that(lambda ticket: replace(parallel_group(*rewards), ticket=ticket), monkeypatch)
    actor._outbox = Outbox(queue, 0.01)
    actor._workers = Mock(target_count=None, newly_replaced=Mock(return_value=0))
    actor._sampler = build_sampler(actor._config.sampler)
    return actor


async def test_a_receipt_names_the_queue_the_group_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    receipt = await sampling_actor(monkeypatch, queue, 1.0, 0.0).sample(TICKET)
    assert (receipt.ticket, receipt.state, receipt.cause) == (TICKET, "queued", "")
    assert (receipt.queue, [5]) == await queue.queue.contents()


async def test_a_group_without_signal_is_in_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    receipt = await sampling_actor(monkeypatch, queue, 1.0, 1.0).sample(TICKET)
    assert (receipt.state, receipt.queue) == ("filtered", "")
    assert (await queue.queue.contents())[1] == []


async def test_a_group_of_an_earlier_era_is_a_failed_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    await queue.queue.begin(era=2)
    actor = sampling_actor(monkeypatch, queue, 1.0, 0.0)
    receipt = await actor.sample(TICKET, 1)
    assert (receipt.state, receipt.queue) == ("failed", "")
    assert receipt.cause == "QueueError: ticket 5: sampled before the run was taken back to a checkpoint"
    assert (await actor.sample(TICKET, 2)).state == "queued"


async def test_a_queue_that_does_not_come_back_is_no_fault_of_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = await sampling_actor(monkeypatch, Queue(gone=True), 1.0, 0.0).sample(TICKET)
    assert (receipt.state, receipt.cause) == ("failed", "RayActorError: The actor died: out of memory")


async def test_a_broken_engine_is_the_actors_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(ticket: Ticket) -> Group:
        raise EngineError("the engine stopped: out of blocks")

    actor = actor_that(answer, monkeypatch)
    actor._sampler = build_sampler(actor._config.sampler)
    with pytest.raises(EngineError, match="out of blocks"):
        await actor.sample(TICKET)
