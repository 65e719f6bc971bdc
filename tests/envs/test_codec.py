"""Groups as messages: what goes in comes out, and whatever else comes in is one `CodecError`."""

from __future__ import annotations

import zlib
from dataclasses import astuple, fields, is_dataclass, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.codec import SCHEMA_VERSION, CodecError, Header, decode_group, encode_group, read_header
from envs.trajectory import (
    SAMPLED_ROLES,
    Credit,
    Group,
    GroupStats,
    PivotTrial,
    Role,
    Row,
    Segment,
    Stream,
    Ticket,
    Trajectory,
    Verdict,
    no_floats,
    no_ints,
)
from envs.wire import kind

COUNTS = st.integers(0, 2**63 - 1)
REWARDS = st.floats(-1e9, 1e9)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TOKENS = st.integers(0, 2**31 - 1)


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def answer(*token_ids: int, version: int = 0) -> Segment:
    n = len(token_ids)
    return Segment(Role.ANSWER, ints(*token_ids), np.full(n, -0.5, np.float32), np.full(n, version, np.int32))


def prompt(*token_ids: int) -> Segment:
    return Segment(Role.PROMPT, ints(*token_ids), no_floats(), no_ints())


def small_group() -> Group:
    """Two solutions of three tokens each, one solved."""
    solved = Trajectory((prompt(1, 2), answer(3, 4, 5, version=7)), Verdict.SOLVED, 1.0, answer="up", sketch=0)
    wrong = Trajectory((prompt(1, 2), answer(6, 7, 8, version=6)), Verdict.WRONG, 0.0, parent=0, pivot=1)
    rows = (
        Row(0, 1, (Credit(1, 2, Stream.SOLUTION, "all", 1.0),)),
        Row(1, 1, (Credit(1, 2, Stream.SOLUTION, "all", 0.0, 0.5, -0.25),), ints(1, 2), 2.0),
    )
    stats, trial = GroupStats(env_steps=4), PivotTrial(0, 1, 0.5, (0.5, 1.25), branches=8, solved=3, gain=0.375)
    return Group(Ticket(3, "frozen_lake", 11, attempt=1), "parallel", (solved, wrong), rows, stats, (trial,))


def same(a: object, b: object) -> bool:
    """Equality of records that hold arrays, types included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    role = draw(st.sampled_from(Role))
    n = draw(st.integers(0, 6))
    ids = draw(arrays(np.int32, n, elements=TOKENS))
    if role not in SAMPLED_ROLES:
        return Segment(role, ids, no_floats(), no_ints())
    logprobs = draw(arrays(np.float32, n, elements=st.floats(-50, 0, width=32)))
    return Segment(role, ids, logprobs, draw(arrays(np.int32, n, elements=TOKENS)))


@st.composite
def rows(draw: st.DrawFn, trajectories: list[Trajectory]) -> Row:
    number, last = draw(st.sampled_from([(i, len(t.segments)) for i, t in enumerate(trajectories)]))
    start = draw(st.integers(0, last - 1))
    credit_at = st.integers(start, last - 1).flatmap(lambda i: st.tuples(st.just(i), st.integers(i + 1, last)))
    stream, advantage = st.sampled_from(Stream), st.none() | REWARDS
    credits = draw(st.lists(st.tuples(credit_at, stream, TEXT, REWARDS, REWARDS, advantage), max_size=3))
    return Row(
        number,
        start,
        tuple(Credit(*span, *rest) for span, *rest in credits),
        draw(st.none() | arrays(np.int32, st.integers(0, 5), elements=TOKENS)),
        draw(st.none() | REWARDS),
    )


@st.composite
def pivot_trials(draw: st.DrawFn, trajectories: int) -> PivotTrial:
    branches = draw(st.integers(0, 8))
    return PivotTrial(
        draw(st.integers(0, trajectories - 1)),
        draw(COUNTS),
        draw(REWARDS),
        tuple(draw(st.lists(REWARDS, max_size=3))),
        branches,
        draw(st.integers(0, branches)),
        draw(REWARDS),
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    trajectories: list[Trajectory] = []
    for _ in range(draw(st.integers(0, 4))):
        parent = draw(st.none() | st.integers(0, len(trajectories) - 1)) if trajectories else None
        own = tuple(draw(st.lists(segments(), min_size=1, max_size=4)))
        shared = 0 if parent is None else min(len(own), len(trajectories[parent].segments))
        pivot = None if parent is None else draw(st.none() | st.integers(0, shared))
        trajectories.append(
            Trajectory(
                own,
                draw(st.sampled_from([Verdict.SOLVED, Verdict.WRONG, Verdict.UNPARSABLE])),
                draw(REWARDS),
                draw(TEXT),
                draw(st.none() | COUNTS),
                parent,
                pivot,
                draw(TEXT),
            )
        )
    return Group(
        Ticket(draw(COUNTS), draw(TEXT), draw(COUNTS), draw(COUNTS)),
        draw(TEXT),
        tuple(trajectories),
        tuple(draw(st.lists(rows(trajectories), max_size=4))) if trajectories else (),
        GroupStats(*(draw(COUNTS) for _ in fields(GroupStats))),
        tuple(draw(st.lists(pivot_trials(len(trajectories)), max_size=2))) if trajectories else (),
    )


@settings(max_examples=80, deadline=None)
@given(groups())
def test_what_is_encoded_decodes_equal_and_the_header_tells_of_it(group: Group) -> None:
    data = encode_group(group)
    assert same(decode_group(data), group)
    assert encode_group(decode_group(data)) == data
    assert read_header(data) == Header(
        group.ticket.index,
        group.ticket.attempt,
        group.oldest_version,
        group.sampled_tokens,
        len(group.trajectories),
        len(group.rows),
        group.has_signal,
    )


def test_the_format_of_this_schema_version_stays() -> None:
    """Where this fails the format changed: raise SCHEMA_VERSION, then renew the digest."""
    data = encode_group(small_group())
    assert (SCHEMA_VERSION, len(data), zlib.crc32(data)) == (3, 404, 1850352500)


def test_whole_rewards_arrive_as_floats() -> None:
    group = small_group()
    whole = replace(group, trajectories=(replace(group.trajectories[0], reward=1), group.trajectories[1]))
    assert same(decode_group(encode_group(whole)), group)


def test_decoded_arrays_are_read_only() -> None:
    assert not decode_group(encode_group(small_group())).trajectories[0].segments[0].token_ids.flags.writeable


def test_every_damaged_byte_is_noticed() -> None:
    data = encode_group(small_group())
    for i in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :]
            for read in (read_header, decode_group):
                with pytest.raises(CodecError):
                    read(damaged)


def test_every_truncation_and_anything_behind_is_noticed() -> None:
    data = encode_group(small_group())
    for n in range(len(data)):
        with pytest.raises(CodecError):
            read_header(data[:n])
    with pytest.raises(CodecError, match="the header says"):
        read_header(data + b"\x00")


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"SESA" + rest))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_group(data)


def message(
    body: object, *, packed: bytes | None = None, header: Header | None = None, version: int = SCHEMA_VERSION
) -> bytes:
    """A message with a right length and CRC, whatever its body."""
    body_bytes: bytes = msgpack.packb(body) if packed is None else packed
    summary: bytes = msgpack.packb(astuple(header or read_header(encode_group(small_group()))))
    crc = zlib.crc32(body_bytes, zlib.crc32(summary))
    return b"".join((b"SESA", msgpack.packb((version, crc, len(body_bytes), summary)), body_bytes))


def test_another_schema_version_names_both() -> None:
    with pytest.raises(CodecError, match=f"schema version 9, this program reads version {SCHEMA_VERSION}"):
        decode_group(message([], version=9))


def test_a_body_above_the_cap_is_not_read() -> None:
    data = encode_group(small_group())
    with pytest.raises(CodecError, match="at most 100 are read"):
        decode_group(data, max_body_bytes=100)
    with pytest.raises(CodecError, match="at most 100 are read"):
        read_header(data, max_body_bytes=100)


def test_a_header_that_disagrees_with_its_body_is_refused() -> None:
    group = small_group()
    body = kind(Group, "Group").write(group)
    header = read_header(encode_group(group))
    assert same(decode_group(message(body)), group)
    with pytest.raises(CodecError, match="oldest_version=7"):
        decode_group(message(body, header=replace(header, oldest_version=7)))


def test_the_size_of_a_typical_message() -> None:
    """8 solutions of 5 turns, 100 tokens of prompt, 10 of each answer and 40 of each observation: 16,396 bytes.

    4 bytes a token, 8 more for a sampled one, under 40 a segment for its frame.
    """
    observation = replace(prompt(*range(40)), role=Role.OBSERVATION)
    turns = (prompt(*range(100)), *(s for _ in range(5) for s in (answer(*range(10)), observation)))
    solution = Trajectory(turns, Verdict.WRONG, 0.0)
    solutions = tuple(Row(i, 1, (Credit(1, 11, Stream.SOLUTION, "all", 0.0),)) for i in range(8))
    size = len(encode_group(Group(Ticket(0, "frozen_lake", 0), "parallel", (solution,) * 8, solutions)))
    arrays_alone = 8 * (4 * (100 + 5 * 50) + 8 * 5 * 10)
    assert arrays_alone < size < arrays_alone + 8 * (11 * 24 + 60)
