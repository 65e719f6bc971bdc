"""The driver's calls to the replay queue: bounded in time, and made again where the queue has died."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from configs.schema import RunConfig
from envs.codec import encode_group
from orchestration import queue_client
from orchestration.queue_client import QueueClient
from orchestration.replay_buffer import Depth, QueueError
from orchestration.replay_queue import ReplayQueue
from tests.builders import parallel_group


class Handle:
    """`handle.method.remote(...)` of a queue in this process, as Ray has it.

    deaths: so many of the next calls find that it has died; lost: so many are done, and their answer does not arrive.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = RunConfig.model_validate({"queue": settings, "grpo": {"groups_per_update": 1}})
        self.deaths, self.lost, self.silent = 0, 0, False
        self.asked: list[str] = []
        self.renew()

    def renew(self) -> None:
        self.queue = ReplayQueue(self.settings.queue)

    def __getattr__(self, method: str) -> Any:
        call = partial(self._call, method)
        return SimpleNamespace(
            remote=call, options=lambda num_returns: SimpleNamespace(remote=partial(self._two, method))
        )

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if self.silent:
            await asyncio.Event().wait()
        if self.deaths:
            self.deaths -= 1
            self.renew()
            raise RayActorError(error_msg="The actor died: out of memory")
        answer = await getattr(self.queue, method)(*arguments)
        if self.lost:
            self.lost -= 1
            self.renew()
            raise RayActorError(error_msg="The actor died: out of memory")
        return answer

    def _two(self, method: str, *arguments: Any) -> tuple[Any, Any]:
        """An answer in two parts, each of which can be awaited."""
        whole = asyncio.ensure_future(self._call(method, *arguments))

        async def part(number: int) -> Any:
            return (await whole)[number]

        second = asyncio.ensure_future(part(1))
        second.add_done_callback(lambda done: done.exception())  # of a call that is made again nobody asks for it
        return part(0), second


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_client, "AGAIN_S", 0.001)


def client(**settings: Any) -> tuple[QueueClient, Any]:
    handle: Any = Handle(**settings)
    return QueueClient(handle.settings, handle), handle


def group(index: int, version: int = 0) -> bytes:
    return encode_group(parallel_group(1.0, 0.0, index=index, version=version))


async def test_a_batch_is_taken_and_its_messages_stay_where_they_are() -> None:
    queue, handle = client()
    name = await queue.begin(0, [group(4), group(2), group(7)])
    assert await queue.contents() == (name, [2, 4, 7])
    taken, payloads = await queue.take(2, 0, {2, 4})
    assert ([header.index for header in taken.fresh], taken.queue) == ([2, 4], name)
    assert await payloads == [group(2), group(4)]
    assert handle.asked.count("take") == 1


async def test_a_queue_that_is_being_started_again_is_asked_until_it_answers() -> None:
    queue, handle = client()
    handle.deaths = 3
    assert await queue.depth() == Depth(0, 0, 0)
    assert handle.asked == ["depth"] * 4


async def test_the_queue_in_its_place_is_known_by_its_name() -> None:
    queue, handle = client()
    name = await queue.begin(0, [group(1), group(2)])
    handle.deaths = 1
    taken, payloads = await queue.take(2, 0, {1, 2})
    assert taken.fresh == ()
    assert await payloads == []
    assert taken.queue != name
    assert (taken.queue, []) == await queue.contents()


async def test_a_batch_whose_word_was_lost_is_not_mixed_with_the_next_ones_messages() -> None:
    """The queue died when it had given the batch: the messages are those of the answer that came."""
    queue, handle = client()
    await queue.begin(0, [group(1), group(2)])
    handle.lost = 1
    taken, payloads = await queue.take(2, 0, {1, 2})
    assert taken.fresh == ()
    assert await payloads == []


async def test_a_copy_of_what_died_with_the_queue_is_refused() -> None:
    queue, handle = client()
    await queue.begin(0, [group(1)])
    assert await queue.copy([1]) == [group(1)]
    handle.deaths = 1
    with pytest.raises(QueueError, match="ticket 1 is queued in the ledger but not in the replay queue"):
        await queue.copy([1])


async def test_a_queue_begins_with_the_groups_of_a_checkpoint_and_no_others() -> None:
    queue, handle = client()
    await queue.begin(0, [group(1)])
    name = await queue.begin(1, [group(5), group(6)])
    assert await queue.contents() == (name, [5, 6])
    with pytest.raises(QueueError, match="sampled before the run was taken back"):
        await handle.queue.put(group(7), 0)


async def test_groups_that_a_queue_loses_as_it_begins_are_missed_at_the_first_batch() -> None:
    """It died between two of them: the name it began with is not that of the batch."""
    queue, handle = client()
    put = ReplayQueue.put

    async def dying_put(data: bytes, era: int) -> str:
        if not handle.queue._buffer.indices():
            return await put(handle.queue, data, era)
        handle.renew()
        raise RayActorError(error_msg="The actor died: out of memory")

    handle.queue.put = dying_put
    name = await queue.begin(0, [group(1), group(2)])
    taken, _ = await queue.take(2, 0, {1, 2})
    assert [header.index for header in taken.fresh] == [2]
    assert taken.queue != name


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("take", (2, 0, ()), "give a batch"),
        ("contents", (), "tell what it holds"),
        ("copy", ([1],), "copy its groups"),
        ("begin", (0,), "begin anew"),
        ("depth", (), "tell its depth"),
    ],
)
@pytest.mark.parametrize("dead", [False, True])
async def test_what_takes_too_long_is_named(method: str, arguments: tuple[Any, ...], says: str, dead: bool) -> None:
    """A queue that hangs, and one that Ray never starts again."""
    queue, handle = client(timeout_s=0.05)
    handle.silent, handle.deaths = not dead, 10**9
    began = time.monotonic()
    with pytest.raises(QueueError, match=rf"^the replay queue did not {says} within 0.05 s \(queue.timeout_s\)$"):
        await getattr(queue, method)(*arguments)
    assert time.monotonic() - began < 5


async def test_what_the_queue_itself_refuses_is_not_asked_again() -> None:
    queue, handle = client(max_groups=1, timeout_s=0.1)
    with pytest.raises(QueueError, match=r"take a group back within|ticket 2: no room in the replay queue"):
        await queue.begin(0, [group(1), group(2)])
    assert handle.asked == ["begin", "put", "put"]
