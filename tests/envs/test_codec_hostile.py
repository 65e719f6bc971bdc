"""Messages are untrusted: damaged and made-up ones are a group or a `CodecError`, in bounded memory and time."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codec import MEMORY_PER_BYTE, CodecError, decode_group, encode_group, read_header
from envs.trajectory import Group, Row, Segment, Ticket, Trajectory, Verdict
from tests.envs.test_codec import answer, message, small_group
from tests.fuzz.codec import FITTED, MESSAGE, fitted, look_at, parts_of
from tests.fuzz.seeds import groups

ROOT = Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests/fuzz/corpus").iterdir())
SEEDS = [encode_group(group) for group in groups().values()]
FIXED_BYTES = 2**18  # the decoder's own buffers


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_fuzzers_corpus_keeps_its_promises(path: Path) -> None:
    assert look_at(path.read_bytes()) == (path.stem in groups())


def test_the_corpus_is_small_and_begins_with_real_groups(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in CORPUS) < 20_000
    subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", tmp_path], cwd=ROOT, check=True)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (ROOT / "tests/fuzz/corpus" / made.name).read_bytes()


def test_the_target_needs_nothing_but_numpy_and_msgpack() -> None:
    """Its environment has these alone."""
    program = (
        "import sys, tests.fuzz.codec, tests.fuzz.seeds\n"
        "print(*{name.split('.')[0] for name in sys.modules if getattr(sys.modules[name], '__file__', None) "
        "and 'site-packages' in sys.modules[name].__file__})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if not name.startswith("_")} == {"numpy", "msgpack"}


def test_an_input_of_the_target_is_the_message_it_is_made_of() -> None:
    for seed in SEEDS:
        assert fitted(parts_of(seed)[1:]) == seed


@settings(max_examples=300)
@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: FITTED + rest))
def test_any_bytes(data: bytes) -> None:
    """`look_at` raises where a promise is broken."""
    look_at(data)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid message with changed, lost, doubled and foreign bytes; as often as not its checksum is put right."""
    whole = draw(st.booleans())
    first, second = (parts_of(seed) if not whole else MESSAGE + seed for seed in draw(st.permutations(SEEDS))[:2])
    data = bytearray(first)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(1, max(1, len(data) - 1)))
        change = draw(st.sampled_from(["flip", "put", "cut", "drop", "double", "splice"]))
        width = draw(st.integers(1, 8))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << (width - 1)
        elif change == "put":
            data[at : at + width] = draw(st.binary(min_size=width, max_size=width))
        elif change == "cut":
            del data[at:]
        elif change == "drop":
            del data[at : at + width]
        elif change == "double":
            data[at:at] = data[at : at + 4 * width]
        else:
            data[at:] = second[at:]
    return bytes(data)


@settings(max_examples=600)
@given(mutated())
def test_mutated_messages(data: bytes) -> None:
    """`look_at` raises where a promise is broken."""
    look_at(data)


# --- memory and time -------------------------------------------------------------------------------------------------


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        decode_group(data)
    except CodecError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def head_of(count: int) -> bytes:
    return b"\xdc" + count.to_bytes(2, "big")


def nest(item: bytes, inner: int = 1000, outer: int = 300) -> bytes:
    return head_of(outer) + (head_of(inner) + item * inner) * outer


def in_group(trajectories: bytes = b"\x90", rows: bytes = b"\x90") -> bytes:
    """The body of a group with these packed trajectories and rows."""
    ticket, stats = msgpack.packb((1, "x", 1, 0)), msgpack.packb((0,) * 6)
    return b"".join((b"\x96", ticket, b"\xa1x", trajectories, rows, stats, b"\x90"))


SAMPLED = msgpack.packb(("answer", b"1234", b"1234", b"1234", True))
PROMPT = msgpack.packb(("prompt", b"1234", b"", b"", True))
EMPTY = msgpack.packb(("prompt", b"", b"", b"", True))
BOMBS = {
    "lists": nest(b"\x90"),
    "texts": nest(b"\xa2ab"),
    "numbers": nest(b"\xcd\x12\x34"),
    "nothing": nest(b"\xc0"),
    "long heads": b"\xdc\x0f\xff" * 20000,
    "deep": b"\x91" * 60000,
    "rows": in_group(rows=head_of(4096) + b"\x95\x00\x00\x90\xc0\xc0" * 4096),
    "credits": in_group(
        rows=head_of(20) + (b"\x95\x00\x00" + head_of(900) + b"\x97\x00\x01\xa8solution\xa0\x00\x00\xc0" * 900
        + b"\xc0\xc0") * 20
    ),
    "trajectories": in_group(head_of(4096) + msgpack.packb(((), "wrong", 0, "", None, None, None, "")) * 4096),
    **{
        f"{name} segments": in_group(
            head_of(10) + (b"\x98" + head_of(2000) + segment * 2000 + b"\xa5wrong\x00\xa0\xc0\xc0\xc0\xa0") * 10
        )
        for name, segment in (("sampled", SAMPLED), ("given", PROMPT), ("empty", EMPTY))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_a_small_multiple_of_the_message(name: str) -> None:
    data = message(None, packed=BOMBS[name])
    assert len(data) > 20_000
    assert peak_bytes(data) < MEMORY_PER_BYTE * len(data) + FIXED_BYTES


def test_a_claim_of_more_than_is_there_costs_nothing() -> None:
    for claim in (b"\xdd", b"\xc6", b"\xdb", b"\xdf", b"\xc9"):
        body = b"\x96" + claim + b"\xff\xff\xff\xff" + b"x" * 100
        assert peak_bytes(message(None, packed=body)) < FIXED_BYTES


def test_a_group_of_short_segments_keeps_within_the_same_bound() -> None:
    """What is valid may take memory, but no more than what is not."""
    one = answer(1)
    trajectory = Trajectory((Segment(one.role, one.token_ids, one.behaviour_logprobs, one.policy_versions),) * 2000,
                            Verdict.WRONG, 0.0)  # fmt: skip
    data = encode_group(Group(Ticket(0, "x", 0), "x", (trajectory,) * 10, (Row(0, 0, ()),)))
    assert peak_bytes(data) < MEMORY_PER_BYTE * len(data) + FIXED_BYTES
    assert len(decode_group(data).trajectories) == 10


@pytest.mark.parametrize("name", BOMBS)
def test_they_are_refused_in_seconds_and_few_words(name: str) -> None:
    data = message(None, packed=BOMBS[name])
    began = time.perf_counter()
    with pytest.raises(CodecError) as caught:
        decode_group(data)
    assert time.perf_counter() - began < 10
    assert len(str(caught.value)) < 400


def test_errors_do_not_repeat_what_the_message_says_at_length() -> None:
    body = msgpack.unpackb(msgpack.packb([[1, "x", 1, 0], "x", [[[], "w" * 10**6, 0.0, "", None, None, None, ""]]]))
    data = message([*body, [], [0] * 6, []])
    with pytest.raises(CodecError, match=r"Trajectory.verdict: 'w{40}' is none of") as caught:
        decode_group(data)
    assert len(str(caught.value)) < 200


def test_the_header_alone_is_read_without_looking_at_the_body() -> None:
    """The queue reads headers only: a body that is no group gets there, with the right length and checksum."""
    data = message(None, packed=b"\xc1" * 1000)
    assert read_header(data) == read_header(encode_group(small_group()))
    with pytest.raises(CodecError):
        decode_group(data)


def test_a_header_of_lists_takes_no_memory() -> None:
    data = fitted(bytes([90]) + b"\xdc\x0f\xff" * 30 + b"\x90")
    tracemalloc.start()
    with pytest.raises(CodecError, match="Header: 4095 fields instead of 7"):
        read_header(data)
    assert tracemalloc.get_traced_memory()[1] < FIXED_BYTES
    tracemalloc.stop()


def test_arrays_of_a_message_are_shared_where_they_are_empty() -> None:
    first, second = decode_group(encode_group(small_group())).trajectories
    assert first.segments[0].behaviour_logprobs is second.segments[0].behaviour_logprobs
    assert first.segments[0].behaviour_logprobs.dtype == np.float32
    assert not first.segments[0].behaviour_logprobs.flags.writeable
