"""The queue's bounds, order and refusals, in plain asyncio."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import QueueSettings
from envs.codec import CodecError, Header, encode_group, read_header
from orchestration.replay_buffer import Depth, QueueError, ReplayBuffer
from orchestration.replay_queue import ReplayQueue
from tests.builders import parallel_group

ALL = range(100)  # tickets that have no end yet
HALF_MIB = 2**17  # answer tokens whose group takes more than half a MiB


def message(index: int, version: int = 0, tokens: int = 2) -> bytes:
    return encode_group(parallel_group(1.0, 0.0, index=index, version=version, tokens=[tokens, 1]))


def header(index: int, version: int = 0) -> Header:
    return read_header(message(index, version))


def queue(max_groups: int = 64, timeout_s: float = 5.0, max_policy_lag: int = 1, max_mib: int = 1) -> ReplayQueue:
    return ReplayQueue(
        QueueSettings(max_groups=max_groups, max_mib=max_mib, max_policy_lag=max_policy_lag, timeout_s=timeout_s)
    )


async def waits(task: asyncio.Task[str]) -> bool:
    """Whether a task is still waiting after everything else has had its turn."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


async def taken_indices(replay: ReplayQueue, count: int, version: int = 0) -> list[int]:
    taken, payloads = await replay.take(count, version, ALL)
    assert [read_header(data) for data in payloads] == list(taken.fresh)
    return [h.index for h in taken.fresh]


# --- the buffer ------------------------------------------------------------------------------------------------------


def test_room_is_bounded_in_groups_and_in_bytes() -> None:
    buffer = ReplayBuffer(max_groups=2, max_bytes=10)
    assert buffer.has_room(10)
    assert not buffer.has_room(11)
    buffer.add(header(0), b"123456")
    assert (len(buffer), buffer.bytes) == (1, 6)
    assert buffer.has_room(4)
    assert not buffer.has_room(5)
    buffer.add(header(1), b"1")
    assert not buffer.has_room(1)
    buffer.take(1, learner_version=0, max_lag=0, wanted=ALL)
    assert (len(buffer), buffer.bytes) == (1, 1)
    assert buffer.has_room(9)


def test_the_oldest_version_leaves_first_then_the_lowest_ticket() -> None:
    buffer = ReplayBuffer(9, 99)
    for index, version in ((4, 2), (3, 1), (7, 2), (2, 2), (9, 1)):
        buffer.add(header(index, version), bytes([index]))
    taken, payloads = buffer.take(4, learner_version=2, max_lag=1, wanted=ALL)
    assert [h.index for h in taken.fresh] == [3, 9, 2, 4]
    assert payloads == [b"\x03", b"\x09", b"\x02", b"\x04"]
    assert taken.stale == ()
    assert [h.index for h in buffer.take(9, 2, 1, ALL)[0].fresh] == [7]


def test_what_is_too_old_is_dropped_and_told() -> None:
    buffer = ReplayBuffer(9, 99)
    for index, version in ((0, 0), (1, 1), (2, 2), (3, 0)):
        buffer.add(header(index, version), b"12")
    taken, payloads = buffer.take(1, learner_version=2, max_lag=1, wanted=ALL)
    assert [h.index for h in taken.stale] == [0, 3]
    assert [h.index for h in taken.fresh] == [1]
    assert payloads == [b"12"]
    assert (len(buffer), buffer.bytes) == (1, 2)


def test_a_group_in_which_nothing_was_sampled_is_never_stale() -> None:
    buffer = ReplayBuffer(9, 99)
    buffer.add(replace(header(0), oldest_version=-1), b"1")
    assert [h.index for h in buffer.take(1, learner_version=9, max_lag=0, wanted=ALL)[0].fresh] == [0]


def test_a_ticket_is_queued_once_and_a_group_must_fit() -> None:
    buffer = ReplayBuffer(9, 10)
    buffer.add(header(3), b"1")
    buffer.add(header(3, version=1), b"22")  # of another attempt
    assert (len(buffer), buffer.bytes, buffer.copy([3])) == (1, 1, [b"1"])
    with pytest.raises(QueueError, match=r"ticket 4: a group of 11 bytes is larger than the queue \(queue.max_mib\)"):
        buffer.add(header(4), b"x" * 11)
    assert (len(buffer), buffer.bytes) == (1, 1)
    taken, payloads = buffer.take(9, learner_version=1, max_lag=1, wanted=ALL)
    assert ([h.oldest_version for h in taken.fresh], payloads) == ([0], [b"1"])


def test_a_group_nobody_wants_is_neither_taken_nor_stale() -> None:
    """The tickets of 1 and 3 have an end: their actors died between queueing and saying so, and others were first."""
    buffer = ReplayBuffer(9, 99)
    for index, version in ((0, 2), (1, 2), (2, 0), (3, 0)):
        buffer.add(header(index, version), b"12")
    taken, payloads = buffer.take(1, learner_version=2, max_lag=1, wanted={0, 2})
    assert ([h.index for h in taken.fresh], [h.index for h in taken.stale], payloads) == ([0], [2], [b"12"])
    assert (len(buffer), buffer.bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=12, unique_by=lambda g: g), st.integers(0, 4))
def test_each_group_leaves_once_and_bytes_add_up(groups: list[tuple[int, int]], max_lag: int) -> None:
    buffer = ReplayBuffer(99, 999)
    for index, (version, size) in enumerate(groups):
        buffer.add(replace(header(0), index=index, oldest_version=version), b"x" * size)
    left: list[int] = []
    while len(buffer):
        taken, payloads = buffer.take(2, learner_version=3, max_lag=max_lag, wanted=ALL)
        assert 3 - max_lag <= min((h.oldest_version for h in taken.fresh), default=3)
        assert [len(data) for data in payloads] == [groups[h.index][1] for h in taken.fresh]
        left += [h.index for h in (*taken.fresh, *taken.stale)]
    assert sorted(left) == list(range(len(groups)))
    assert buffer.bytes == 0


# --- the queue -------------------------------------------------------------------------------------------------------


async def test_messages_come_out_as_they_went_in() -> None:
    replay = queue()
    await replay.put(message(1))
    await replay.put(message(0))
    taken, payloads = await replay.take(9, 0, ALL)
    assert [h.index for h in taken.fresh] == [0, 1]
    assert payloads == [message(0), message(1)]
    assert await replay.depth() == Depth(groups=0, bytes=0, rejected=0)


async def test_a_full_queue_holds_actors_back_until_a_batch_is_taken() -> None:
    replay = queue(max_groups=2)
    await replay.put(message(0))
    await replay.put(message(1))
    third, fourth = [asyncio.create_task(replay.put(message(i))) for i in (2, 3)]
    assert await waits(third)
    assert await taken_indices(replay, 1) == [0]
    assert not await waits(third)
    assert await waits(fourth)
    assert (await replay.depth()).groups == 2
    assert await taken_indices(replay, 2) == [1, 2]
    await fourth
    assert await taken_indices(replay, 2) == [3]


async def test_a_batch_that_is_taken_lets_as_many_in_as_it_held() -> None:
    replay = queue(max_groups=2)
    for index in (0, 1):
        await replay.put(message(index))
    waiting = [asyncio.create_task(replay.put(message(i))) for i in (2, 3)]
    assert await waits(waiting[0])
    assert await taken_indices(replay, 2) == [0, 1]
    assert [await waits(task) for task in waiting] == [False, False]


async def test_bytes_hold_actors_back_too() -> None:
    replay = queue(max_mib=1)
    await replay.put(message(0, tokens=HALF_MIB // 2))
    second = asyncio.create_task(replay.put(message(1, tokens=HALF_MIB // 2)))
    assert await waits(second)
    small = asyncio.create_task(replay.put(message(2)))
    assert not await waits(small)
    assert await taken_indices(replay, 1) == [0]
    await second
    assert (await replay.depth()).bytes == len(message(1, tokens=HALF_MIB // 2)) + len(message(2))


async def test_dropping_what_is_stale_makes_room() -> None:
    replay = queue(max_groups=1, max_policy_lag=0)
    await replay.put(message(0, version=0))
    second = asyncio.create_task(replay.put(message(1, version=1)))
    assert await waits(second)
    taken, payloads = await replay.take(1, learner_version=1, wanted=ALL)
    assert ([h.index for h in taken.stale], taken.fresh, payloads) == ([0], (), [])
    await second
    assert await taken_indices(replay, 1, version=1) == [1]


async def test_no_room_in_time_is_an_error_that_names_the_learner() -> None:
    replay = queue(max_groups=1, timeout_s=0.02)
    await replay.put(message(0))
    size = len(message(0))
    expected = rf"ticket 1: no room in the replay queue within 0.02 s \(1 groups, {size} bytes\): is the learner stuck"
    with pytest.raises(QueueError, match=expected):
        await replay.put(message(1))
    assert await taken_indices(replay, 1) == [0]
    await replay.put(message(1))
    assert await taken_indices(replay, 1) == [1]


async def test_a_damaged_message_is_rejected_and_the_queue_goes_on() -> None:
    replay = queue()
    damaged = bytearray(message(0))
    damaged[-1] ^= 1
    for data in (bytes(damaged), b"", b"SESA of another kind"):
        with pytest.raises(CodecError):
            await replay.put(data)
    assert await replay.depth() == Depth(groups=0, bytes=0, rejected=3)
    await replay.put(message(0))
    assert await taken_indices(replay, 1) == [0]


async def test_a_ticket_that_is_queued_is_kept_out_at_once_also_by_a_full_queue() -> None:
    """Who puts it in again hears what the first one heard, or should have heard."""
    replay = queue(max_groups=1)
    first = await replay.put(message(0))
    assert await asyncio.wait_for(replay.put(message(0, version=1)), 1.0) == first
    assert await replay.depth() == Depth(groups=1, bytes=len(message(0)), rejected=0)
    assert (await replay.take(1, 0, ALL))[1] == [message(0)]


async def test_of_two_that_wait_with_one_ticket_one_is_kept_out() -> None:
    replay = queue(max_groups=2)
    for index in (0, 1):
        await replay.put(message(index))
    both = [asyncio.create_task(replay.put(message(2, version))) for version in (0, 1)]
    assert await waits(both[0])
    assert await taken_indices(replay, 2) == [0, 1]
    one, other = await asyncio.gather(*both)
    assert one == other
    taken, payloads = await replay.take(2, 0, ALL)
    assert ([(h.index, h.oldest_version) for h in taken.fresh], payloads) == ([(2, 0)], [message(2)])


async def test_a_group_larger_than_the_queue_is_refused_at_once() -> None:
    with pytest.raises(QueueError, match="larger than the queue"):
        await queue(max_mib=1).put(message(0, tokens=HALF_MIB))


async def test_taking_does_not_wait_for_a_whole_batch() -> None:
    replay = queue()
    assert await taken_indices(replay, 4) == []
    await replay.put(message(5))
    assert await taken_indices(replay, 4) == [5]


async def test_a_copy_for_a_checkpoint_leaves_the_groups_where_they_are() -> None:
    replay = queue()
    for index in (3, 1, 2):
        await replay.put(message(index))
    assert await replay.copy([1, 3]) == [message(1), message(3)]
    assert await replay.copy([]) == []
    with pytest.raises(QueueError, match="ticket 7 is queued in the ledger but not in the replay queue"):
        await replay.copy([1, 7])
    assert await taken_indices(replay, 5) == [1, 2, 3]


# --- another queue ---------------------------------------------------------------------------------------------------


async def test_every_queue_has_a_name_of_its_own() -> None:
    one, other = queue(), queue()
    name = await one.put(message(3))
    assert name
    assert await one.contents() == (name, [3])
    assert (await one.take(1, 0, ALL))[0].queue == name
    assert await one.contents() == (name, [])
    assert (await other.contents())[0] != name


async def test_a_queue_that_begins_anew_is_empty_and_takes_nothing_that_was_sampled_before() -> None:
    replay = queue(max_groups=2)
    name = await replay.put(message(0))
    assert await replay.begin(era=1) == name
    assert await replay.depth() == Depth(groups=0, bytes=0, rejected=0)
    with pytest.raises(QueueError, match="ticket 0: sampled before the run was taken back to a checkpoint"):
        await replay.put(message(0))
    assert await replay.put(message(0, version=1), 1) == name
    assert await taken_indices(replay, 9, version=1) == [0]


async def test_who_waits_for_room_when_the_queue_begins_anew_is_refused() -> None:
    replay = queue(max_groups=1)
    await replay.put(message(0))
    waiting = asyncio.create_task(replay.put(message(1)))
    assert await waits(waiting)
    await replay.begin(era=1)
    with pytest.raises(QueueError, match="ticket 1: sampled before the run was taken back"):
        await waiting
    assert await taken_indices(replay, 9) == []
