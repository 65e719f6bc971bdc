"""Ray, vLLM and DeepSpeed ZeRO-3 together: two rollout actors and two ranks on one small policy."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from actors.receipt import Receipt
from envs.codec import decode_group
from envs.trajectory import Group
from learner.logprobs import token_logprobs
from learner.models import target_logits
from learner.objective import batch_loss
from learner.rows import training_rows
from orchestration.memory import estimate
from orchestration.memory_terms import MIB
from orchestration.shapes import shape_in
from orchestration.tickets import held_out_tickets, training_ticket
from tests.builders import collated
from tests.orchestration.stack import SETTINGS, Stack, assert_engine_and_learner_agree, started

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def stack(small_policy: Path) -> Iterator[Stack]:
    with started(SETTINGS | {"sync": {"checksum": True}}, small_policy, small_policy) as stack:
        yield stack


def test_same_ticket_gives_the_same_tokens_on_every_actor(stack: Stack) -> None:
    async def both() -> list[list[bytes]]:
        calls = [actor.sample_held_out.remote(held_out_tickets(4, "frozen_lake"), 2, None) for actor in stack.actors]
        return [await call for call in calls]

    first, second = ([decode_group(data) for data in part] for part in stack.run(both))
    for a, b in zip(first, second, strict=True):
        assert [_tokens(a), a.ticket] == [_tokens(b), b.ticket]
    assert len({str(_tokens(group)) for group in first}) == 4


def test_an_update_equals_one_process_of_plain_torch(stack: Stack) -> None:
    """Two ZeRO-3 ranks, several micro-batches: loss and gradient norm of the whole batch in one process."""

    async def one_update() -> tuple[Any, list[bytes]]:
        receipts, payloads = await stack.sample_batch(0, 6)
        assert {r.state for r in receipts} == {"queued"}
        sums = await stack.update(payloads)
        return sums, await payloads

    before = _load(stack.policy)
    sums, messages = stack.run(one_update)
    assert_engine_and_learner_agree(sums)

    rows = training_rows([decode_group(m) for m in messages], stack.config)
    assert {row.own_context for row in rows} == {True, False}
    batch = collated(rows)
    logits = target_logits(before, batch, packing=False)
    logprobs, entropy = token_logprobs(logits, batch.token_ids[batch.targets], 1.0)
    loss = batch_loss(batch, logprobs, entropy, logprobs.detach(), None, None, stack.config.grpo).total
    assert loss.item() == pytest.approx(sums.loss, abs=1e-5)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in before.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(sums.grad_norm, rel=1e-4)
    assert float(norm) > 1e-3


def test_what_is_broadcast_is_what_is_exported(stack: Stack, tmp_path: Path) -> None:
    """The actors' bytes are those sent (sync.checksum); those sent are the export's."""

    async def broadcast() -> int:
        times = await stack.broadcast()
        assert times.total_s < 10
        await stack.learners.export(str(tmp_path / "policy"))
        rank: Any = stack.learners._ranks[0]
        sent: int = await rank.__ray_call__.remote(lambda rank: rank._sender._engine.checksum)
        return sent

    exported = 0
    sent = stack.run(broadcast)
    for parameter in _load(tmp_path / "policy").parameters():
        exported = zlib.crc32(parameter.detach().numpy().tobytes(), exported)
    assert sent == exported


def test_after_a_broadcast_engine_and_learner_agree_as_before(stack: Stack) -> None:
    async def round_trip() -> Any:
        await stack.broadcast()
        _, payloads = await stack.sample_batch(100, 6)
        return await stack.learners.score(await payloads)

    assert_engine_and_learner_agree(stack.run(round_trip))


def test_requests_in_flight_go_on_under_the_new_weights(stack: Stack) -> None:
    """A broadcast while tickets are sampled: each token belongs to one version, and the learner confirms both."""

    async def overlap() -> tuple[Any, Any, list[Group]]:
        _, first = await stack.sample_batch(200, 4)
        old = stack.version
        tickets = [training_ticket(0, 300 + i, "frozen_lake") for i in range(24)]
        sampling = [asyncio.create_task(stack.sample(i, ticket)) for i, ticket in enumerate(tickets)]
        await asyncio.sleep(0.4)
        await stack.update(first)
        await stack.broadcast()
        await asyncio.gather(*sampling)
        taken, payloads = await stack.take(24, stack.version, [ticket.index for ticket in tickets])
        assert len(taken.fresh) == 24
        messages = await payloads
        return old, await stack.learners.score(messages), [decode_group(m) for m in messages]

    old, sums, groups = stack.run(overlap)
    versions = [np.concatenate([s.policy_versions for s in t.segments]) for g in groups for t in g.trajectories]
    mixed = [v for v in versions if len(np.unique(v)) > 1]
    assert mixed, "no trajectory was in flight during the broadcast"
    assert all(set(np.unique(v)) <= {old, old + 1} and (np.diff(v) >= 0).all() for v in versions)
    assert_engine_and_learner_agree(sums)


def test_engines_that_sleep_through_an_update_go_on_where_they_were(stack: Stack) -> None:
    """Taking turns (cluster.colocated): in the middle of tickets, until new weights come, or figures are there."""

    async def ask(method: str) -> None:
        await asyncio.gather(*(getattr(actor, method).remote() for actor in stack.actors))

    async def paused() -> list[float]:
        return [(await actor.clock.remote()).paused_s for actor in stack.actors]

    async def turns() -> tuple[float, list[float], Any, list[Group]]:
        _, first = await stack.sample_batch(500, 16)
        tickets = [training_ticket(0, 600 + i, "frozen_lake") for i in range(24)]
        sampling = [asyncio.create_task(stack.sample(i, ticket)) for i, ticket in enumerate(tickets)]
        await asyncio.sleep(0.4)
        before, began = await paused(), time.monotonic()
        await stack.update(first)
        took_s = time.monotonic() - began
        assert not all(task.done() for task in sampling)
        await stack.broadcast()
        slept = [after - ago for after, ago in zip(await paused(), before, strict=True)]
        await asyncio.gather(*sampling)
        _, payloads = await stack.take(24, stack.version, [ticket.index for ticket in tickets])
        messages = await payloads
        sums = await stack.learners.score(messages)
        await stack.sample_batch(700, 2)  # they are awake again
        return took_s, slept, sums, [decode_group(m) for m in messages]

    stack.learners.takes_turns_with(ask)
    try:
        took_s, slept, sums, groups = stack.run(turns)
    finally:
        stack.learners._ask_engines = None
    assert min(slept) > 0.8 * took_s
    assert any(len(np.unique(s.policy_versions)) > 1 for g in groups for t in g.trajectories for s in t.segments)
    assert_engine_and_learner_agree(sums)


def test_an_update_in_parts_that_broke_off_leaves_an_engine_as_good_as_before(stack: Stack) -> None:
    """Its learner went away between two parts, or a part was damaged: the next learner's weights are the engine's."""

    async def broken_off() -> Any:
        for actor in stack.actors:
            await actor.begin_weights.remote()
        with pytest.raises(RayTaskError, match="counts"):
            await stack.actors[0].take_part.remote({"names": ["a"], "dtype_names": ["float32"], "shapes": []})
        await stack.actors[1].begin_weights.remote()  # once more, from the beginning
        await stack.learners.give(dict(enumerate(stack.actors)), anew=True)
        _, payloads = await stack.sample_batch(800, 6)
        return await stack.learners.score(await payloads)

    assert_engine_and_learner_agree(stack.run(broken_off))


def test_sesa_groups_come_through_whole(stack: Stack) -> None:
    async def sample() -> tuple[list[Receipt], list[bytes]]:
        receipts, payloads = await stack.sample_batch(400, 4)
        return receipts, await payloads

    receipts, messages = stack.run(sample)
    for receipt, group in zip(receipts, sorted(map(decode_group, messages), key=lambda g: g.ticket.index), strict=True):
        assert receipt.solutions == 4 == sum(t.is_solution for t in group.trajectories)
        assert receipt.stats.sketches == 4
        assert receipt.sampled_tokens == group.sampled_tokens > 0


def test_processes_are_as_large_as_estimated(stack: Stack) -> None:
    """The most that actors and ranks ever had resident, after some updates, within a fifth of the estimate."""

    async def work() -> list[list[int]]:
        for number in range(10):
            await stack.update((await stack.sample_batch(1000 + 32 * number, 32))[1])
            await stack.broadcast()
        kinds: list[list[Any]] = [stack.learners._ranks, stack.actors]  # type: ignore[list-item]
        return [[await process.__ray_call__.remote(_peak_kib) for process in processes] for processes in kinds]

    needs = estimate(stack.config, shape_in(stack.policy / "config.json")).needs
    for need, peaks in zip(needs, stack.run(work), strict=True):
        assert [kib / 1024 for kib in peaks] == pytest.approx([need.size / MIB] * len(peaks), rel=0.2), need.role


def _peak_kib(_: Any) -> int:
    """Run in a process of the stack."""
    return int(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM:")))


def _tokens(group: Group) -> list[list[int]]:
    return [np.concatenate([s.token_ids for s in t.segments]).tolist() for t in group.trajectories]


def _load(policy: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
