"""Groups as bytes, made once in several lengths; each ticket's gets a header of its own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from statistics import NormalDist, fmean

import msgpack
import numpy as np

from actors.receipt import Receipt, receipt_of
from envs.codec import encode_group
from envs.trajectory import (
    Credit,
    Group,
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
from tests.bench.scale.load import Load

LENGTHS = 16
PROMPT_TOKENS, VOCABULARY = 100, 150_000
_MAGIC_BYTES, _SUMMARY = 4, 3  # of a message and of its header, as `envs.codec` has them


@dataclass(frozen=True, slots=True)
class Template:
    """A group's message, and the receipt of it. share: its sampled tokens, over the mean of all lengths."""

    receipt: Receipt
    share: float
    magic: bytes
    header: list[int | bytes]
    body: bytes

    def stamped(self, ticket: Ticket, version: int) -> bytes:
        """The message of this ticket, sampled under `version`: header and CRC are its own, the body is as it was made.

        The queue reads no more than that. Twenty times as fast as to encode a group.
        """
        summary = msgpack.unpackb(self.header[_SUMMARY])
        summary[:3] = ticket.index, ticket.attempt, version
        packed = msgpack.packb(summary)
        crc = zlib.crc32(self.body, zlib.crc32(packed))
        return b"".join((self.magic, msgpack.packb([self.header[0], crc, len(self.body), packed]), self.body))


def templates(load: Load) -> list[Template]:
    """LENGTHS of them, equally likely: the distribution's quantiles."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / LENGTHS) for i in range(LENGTHS)]
    lengths = [max(1, round(load.tokens_median * np.exp(load.tokens_sigma * q))) for q in quantiles]
    mean = fmean(lengths)
    return [_template(load, tokens, tokens / mean) for tokens in lengths]


def _template(load: Load, tokens: int, share: float) -> Template:
    group = _group(load.trajectories, tokens)
    data = encode_group(group)
    unpacker = msgpack.Unpacker()
    unpacker.feed(data[_MAGIC_BYTES:])
    header = unpacker.unpack()
    body = data[_MAGIC_BYTES + unpacker.tell() :]
    return Template(receipt_of(group, "queued", ""), share, data[:_MAGIC_BYTES], header, body)


def _group(trajectories: int, tokens: int) -> Group:
    rng = np.random.default_rng(tokens)
    prompt = Segment(Role.PROMPT, rng.integers(0, VOCABULARY, PROMPT_TOKENS, np.int32), no_floats(), no_ints())
    made = tuple(_trajectory(prompt, tokens, i % 2 == 0, rng) for i in range(trajectories))
    rows = tuple(Row(i, 1, (Credit(1, 2, Stream.SOLUTION, "all", t.reward),)) for i, t in enumerate(made))
    return Group(Ticket(0, "frozen_lake", 0), "parallel", made, rows)


def _trajectory(prompt: Segment, tokens: int, solved: bool, rng: np.random.Generator) -> Trajectory:
    said = Segment(
        Role.ANSWER,
        rng.integers(0, VOCABULARY, tokens, np.int32),
        -rng.random(tokens).astype(np.float32),
        np.zeros(tokens, np.int32),
    )
    verdict = Verdict.SOLVED if solved else Verdict.WRONG
    return Trajectory((prompt, said), verdict, float(solved), answer=f"{tokens} tokens")
