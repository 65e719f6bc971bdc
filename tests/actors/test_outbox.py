"""A group is put into the queue once, also where the queue dies or its answer is lost."""

from __future__ import annotations

import asyncio
import time

import pytest
from ray.exceptions import RayActorError

from actors import outbox
from actors.outbox import Outbox, OutboxError
from configs.schema import QueueSettings
from envs.codec import CodecError, encode_group
from orchestration.replay_buffer import Depth, QueueError
from orchestration.replay_queue import ReplayQueue
from tests.builders import parallel_group

DIED = RayActorError(error_msg="The actor died: out of memory")
GROUP = encode_group(parallel_group(1.0, 0.0, index=3))


class Handle:
    """`queue.put.remote(data, era)`, as Ray has it.

    before, behind: deaths before and behind the next puts. wait_s: for room.
    """

    def __init__(self, before: int = 0, behind: int = 0, wait_s: float = 0.0) -> None:
        self.queue = ReplayQueue(QueueSettings(timeout_s=5.0))
        self.put, self.before, self.behind, self.wait_s, self.calls = self, before, behind, wait_s, 0

    async def remote(self, data: bytes, era: int) -> str:
        self.calls += 1
        await asyncio.sleep(self.wait_s)
        if self.before:
            self.before -= 1
            raise DIED
        name = await self.queue.put(data, era)
        if self.behind:
            self.behind -= 1
            raise DIED
        return name


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "AGAIN_S", 0.001)


async def test_a_group_is_put_once_and_the_queue_is_named() -> None:
    handle = Handle()
    name = await Outbox(handle, 5.0).put(GROUP, 0)
    assert await handle.queue.contents() == (name, [3])
    assert handle.calls == 1


async def test_a_queue_that_is_being_started_again_gets_the_group_when_it_is_there() -> None:
    handle = Handle(before=3)
    name = await Outbox(handle, 5.0).put(GROUP, 0)
    assert await handle.queue.contents() == (name, [3])
    assert handle.calls == 4


async def test_where_the_answer_is_lost_the_group_is_there_once_all_the_same() -> None:
    handle = Handle(behind=2)
    name = await Outbox(handle, 5.0).put(GROUP, 0)
    assert await handle.queue.depth() == Depth(groups=1, bytes=len(GROUP), rejected=0)
    assert (await handle.queue.contents())[0] == name
    assert handle.calls == 3


async def test_a_queue_that_does_not_come_back_is_given_up_within_the_limit() -> None:
    handle = Handle(before=10**9)
    began = time.monotonic()
    with pytest.raises(RayActorError, match="out of memory"):
        await Outbox(handle, 0.05).put(GROUP, 0)
    assert 0.05 <= time.monotonic() - began < 5
    assert handle.calls > 1


@pytest.mark.parametrize(
    ("data", "era", "error", "says"),
    [
        (GROUP, 0, QueueError, "sampled before the run was taken back to a checkpoint"),
        (b"no message", 1, CodecError, "no group: 10 bytes"),
    ],
)
async def test_what_the_queue_refuses_is_not_tried_again(
    data: bytes, era: int, error: type[Exception], says: str
) -> None:
    handle = Handle()
    await handle.queue.begin(era=1)
    with pytest.raises(error, match=says):
        await Outbox(handle, 5.0).put(data, era)
    assert handle.calls == 1


async def test_an_answer_that_comes_behind_the_limit_counts() -> None:
    """The queue bounds its own wait for room; the limit is for a queue that is gone."""
    handle = Handle(wait_s=0.1)
    assert await Outbox(handle, 0.01).put(GROUP, 0) == (await handle.queue.contents())[0]
    assert handle.calls == 1


async def test_a_queue_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "GRACE_S", 0.05)
    says = r"^the replay queue gave no answer within 0.01 s \(queue.timeout_s\)$"
    with pytest.raises(OutboxError, match=says):
        await Outbox(Handle(wait_s=60), 0.01).put(GROUP, 0)
