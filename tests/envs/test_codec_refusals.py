"""Bodies and groups that break the contract: each is one `CodecError` that says where."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from envs.codec import CodecError, decode_group, encode_group
from envs.trajectory import Group, Segment, Ticket
from envs.wire import kind
from tests.envs.test_codec import answer, ints, message, small_group

Body = Any  # nested lists
BREAKS: dict[str, tuple[Callable[[Body], object], str]] = {
    "no list": (lambda _: 3, "Group: int instead of list"),
    "field missing": (lambda b: b[:-1], "Group: 5 fields instead of 6"),
    "ticket": (lambda b: b[0].__setitem__(0, "3"), "Ticket.index: str instead of int"),
    "truth value": (lambda b: b[0].__setitem__(0, True), "Ticket.index: bool instead of int"),
    "verdict": (lambda b: b[2][0].__setitem__(1, "won"), "Trajectory.verdict: 'won' is none of"),
    "verdict's type": (lambda b: b[2][0].__setitem__(1, []), "Trajectory.verdict: list instead of str"),
    "role": (lambda b: b[2][0][0][0].__setitem__(0, "judge"), "Segment.role: 'judge' is none of"),
    "stream": (lambda b: b[3][0][2][0].__setitem__(2, "x"), "Credit.stream: 'x' is none of"),
    "reward": (lambda b: b[2][0].__setitem__(2, None), "Trajectory.reward: NoneType instead of float"),
    "nan": (lambda b: b[2][0].__setitem__(2, float("nan")), "Trajectory.reward: nan is no finite number"),
    "array": (lambda b: b[2][0][0][0].__setitem__(1, [1, 2]), "Segment.token_ids: list instead of bytes"),
    "half a token": (lambda b: b[2][0][0][0].__setitem__(1, b"123"), "3 bytes are no whole number of int32"),
    "missing log-probs": (lambda b: b[2][0][0][1].__setitem__(2, b""), "3 answer tokens with 0 log-probs and 3 policy"),
    "prompt's log-probs": (lambda b: b[2][0][0][0].__setitem__(2, b"1234"), "2 prompt tokens with 1 log-probs"),
    "token id": (lambda b: b[2][0][0][0].__setitem__(1, b"\xff" * 4), "trajectory 0, segment 0: token id -1"),
    "policy version": (lambda b: b[2][0][0][1].__setitem__(3, b"\xff" * 12), "policy version -1"),
    "log-prob": (lambda b: b[2][0][0][1].__setitem__(2, struct.pack("<3f", 0, -np.inf, 0)), "no finite number"),
    "parent": (lambda b: b[2][1].__setitem__(5, 2), "trajectory 1: parent 2 of 2 trajectories"),
    "pivot": (lambda b: b[2][1].__setitem__(6, 3), "pivot 3, it and its parent share at most 2 segments"),
    "pivot alone": (lambda b: b[2][1].__setitem__(5, None), "pivot 1 without a parent"),
    "sketch": (lambda b: b[2][0].__setitem__(4, -1), "trajectory 0: sketch -1"),
    "row's trajectory": (lambda b: b[3][0].__setitem__(0, 2), "row 0: trajectory 2 of 2"),
    "row's first": (lambda b: b[3][0].__setitem__(1, 2), "row 0: first segment 2 of 2"),
    "failed": (lambda b: b[2][0].__setitem__(1, "failed"), "row 0: trajectory 0 failed and is no training data"),
    "credit's last": (
        lambda b: b[3][0][2][0].__setitem__(1, 3),
        r"row 0: a credit for segments \[1, 3\) of the targets \[1, 2\)",
    ),
    "credit's first": (
        lambda b: b[3][0][2][0].__setitem__(0, 0),
        r"row 0: a credit for segments \[0, 2\) of the targets",
    ),
    "many rows": (lambda b: b.__setitem__(3, [0] * 5000), "Group.rows: 5000 of them, at most 4096 are read"),
    "long text": (lambda b: b.__setitem__(1, "x" * (2**20 + 1)), "exceeds max_str_len"),
    "a map": (lambda b: b.__setitem__(4, {"a": 1}), "GroupStats: map instead of list"),
    "an extension": (lambda b: b.__setitem__(4, msgpack.Timestamp(1)), "GroupStats: extension instead of list"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_well_packed_body_of_the_wrong_shape_is_refused(name: str) -> None:
    change, expected = BREAKS[name]
    body = msgpack.unpackb(msgpack.packb(kind(Group, "Group").write(small_group())))
    changed = change(body)
    with pytest.raises(CodecError, match=expected):
        decode_group(message(body if changed is None else changed))


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"),
        *(b"\xc1", b"\x91" * 5000, b"\xdc\x0f\xff" * 3000, b"\xa1\xff", b"\x80\x80", b"\xd6\xff1234"),
    ],
    ids=lambda packed: packed[:6].hex() or "empty",
)
def test_absurd_bodies_are_refused_without_their_memory(packed: bytes) -> None:
    with pytest.raises(CodecError):
        decode_group(message(None, packed=packed))


def mistyped(value: object) -> Any:
    """A value where the type checker would not let it be."""
    return value


GROUP_BREAKS: dict[str, tuple[Callable[[Group], Group], str]] = {
    "int64": (
        lambda g: with_segment(g, replace(answer(1), token_ids=np.array([1]))),
        r"Segment.token_ids: an array of int64 \(1,\), expected int32 \(n,\)",
    ),
    "2-d": (
        lambda g: with_segment(g, replace(answer(1), token_ids=ints(1)[None])),
        r"an array of int32 \(1, 1\), expected int32 \(n,\)",
    ),
    "a list": (
        lambda g: with_segment(g, replace(answer(1), token_ids=mistyped([1]))),
        "Segment.token_ids: list instead of ndarray",
    ),
    "lengths": (lambda g: with_segment(g, replace(answer(1, 2), policy_versions=ints(1))), "2 answer tokens with 2"),
    "numpy number": (
        lambda g: replace(g, ticket=Ticket(mistyped(np.int64(1)), "x", 1)),
        "Ticket.index: int64 instead of int",
    ),
    "no tuple": (lambda g: replace(g, rows=mistyped([])), "Group.rows: list instead of tuple"),
    "nothing": (lambda g: replace(g, ticket=mistyped(None)), "Ticket: NoneType instead of Ticket"),
    "seed": (lambda g: replace(g, ticket=Ticket(1, "x", 2**64)), "a group that cannot be packed"),
    "text": (lambda g: replace(g, sampler="\ud800"), "a group that cannot be packed"),
    "long text": (lambda g: replace(g, sampler="x" * (2**20 + 1)), "Group.sampler: more than 1048576 bytes of text"),
    "many": (lambda g: replace(g, rows=g.rows * 3000), "Group.rows: 6000 of them, at most 4096"),
    "row": (lambda g: replace(g, rows=(replace(g.rows[0], trajectory=2),)), "row 0: trajectory 2 of 2"),
}


def with_segment(group: Group, segment: Segment) -> Group:
    first = replace(group.trajectories[0], segments=(segment,))
    return replace(group, trajectories=(first, *group.trajectories[1:]))


@pytest.mark.parametrize("name", GROUP_BREAKS)
def test_a_group_that_breaks_its_contract_is_not_encoded(name: str) -> None:
    change, expected = GROUP_BREAKS[name]
    with pytest.raises(CodecError, match=expected):
        encode_group(change(small_group()))


def test_a_hint_without_a_form_is_a_mistake_in_the_program() -> None:
    with pytest.raises(TypeError, match=r"Ticket.seed: <class 'object'> has no form"):
        kind(object, "Ticket.seed")
