"""Groups as messages: 4 bytes of magic, a msgpack header, a msgpack body.

    header  = [schema version, CRC32 of summary and body, bytes of the body, summary]
    summary = msgpack of a `Header`
    body    = msgpack of a `Group`

Records are arrays of their fields in their order, (n,) arrays raw bytes (`envs.wire`). One `CodecError` for everything
that is wrong, in writing as in reading. Reading takes time linear in the message's size, and at most MEMORY_PER_BYTE
times its memory, whatever it holds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgpack

from envs.faults import group_faults
from envs.trajectory import Group
from envs.wire import CodecError, Kind, Reader, kind

__all__ = [
    "MAX_BODY_BYTES",
    "MEMORY_PER_BYTE",
    "SCHEMA_VERSION",
    "CodecError",
    "Header",
    "decode_group",
    "encode_group",
    "read_header",
    "read_messages",
]

SCHEMA_VERSION = 3
MAX_BODY_BYTES = 64 * 2**20
# Segments of one sampled token: three arrays of one element each, which take 100 bytes and more.
MEMORY_PER_BYTE = 25
_MAGIC = b"SESA"
_MAX_HEADER_BYTES = 128


@dataclass(frozen=True, slots=True)
class Header:
    """What the queue needs to know of a group without unpacking it; counts are of the whole group.

    `index`, `attempt`: of the ticket. `oldest_version`: -1 when nothing was sampled.
    """

    index: int
    attempt: int
    oldest_version: int
    sampled_tokens: int
    trajectories: int
    rows: int
    has_signal: bool


def encode_group(group: Group) -> bytes:
    """The message of a group. Raises CodecError where it breaks its contract (`envs.faults`, or a field's type)."""
    record = _GROUP.write(group)
    _check(group)
    try:
        body = msgpack.packb(record)
        summary = msgpack.packb(_HEADER.write(_header(group)))
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"a group that cannot be packed: {error}") from error
    header = msgpack.packb((SCHEMA_VERSION, zlib.crc32(body, zlib.crc32(summary)), len(body), summary))
    return b"".join((_MAGIC, header, body))


def decode_group(data: bytes, max_body_bytes: int = MAX_BODY_BYTES) -> Group:
    """The group of a message; its arrays are read-only. Raises CodecError."""
    header, body = _open(data, max_body_bytes)
    group: Group = _read(_GROUP, body)
    _check(group)
    if _header(group) != header:
        raise CodecError(f"the header says {header}, the body {_header(group)}")
    return group


def read_messages(packed: bytes) -> list[bytes]:
    """Messages that were kept as one packed list, as in a checkpoint; each is still to be read. Raises CodecError."""
    reader = Reader(packed)
    messages = [reader.value("message", "bytes") for _ in range(reader.count("messages"))]
    reader.end()
    if not all(isinstance(message, bytes) for message in messages):
        raise CodecError("a list of something else than messages")
    return messages


def read_header(data: bytes, max_body_bytes: int = MAX_BODY_BYTES) -> Header:
    """The header of a message whose length and CRC are right; the body stays packed. Raises CodecError."""
    return _open(data, max_body_bytes)[0]


def _header(group: Group) -> Header:
    return Header(
        group.ticket.index,
        group.ticket.attempt,
        group.oldest_version,
        group.sampled_tokens,
        len(group.trajectories),
        len(group.rows),
        group.has_signal,
    )


def _open(data: bytes, max_body_bytes: int) -> tuple[Header, memoryview]:
    """The header and the packed body of a message, checked against each other."""
    view = memoryview(data)
    if bytes(view[:4]) != _MAGIC:
        raise CodecError(f"no group: {len(data)} bytes that start with {bytes(view[:4])!r} instead of {_MAGIC!r}")
    unpacker = msgpack.Unpacker(max_buffer_size=_MAX_HEADER_BYTES, max_map_len=0, max_ext_len=0)
    unpacker.feed(view[4 : 4 + _MAX_HEADER_BYTES])
    try:
        header = unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"a header that cannot be unpacked: {error or type(error).__name__}") from error
    body = view[4 + unpacker.tell() :]
    version = header[0] if type(header) is list and header else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise CodecError(f"a message of schema version {version!r}, this program reads version {SCHEMA_VERSION}")
    if [type(part) for part in header] != [int, int, int, bytes]:
        raise CodecError(f"a header of {[type(part).__name__ for part in header]}")
    _, crc, body_bytes, summary = header
    if body_bytes > max_body_bytes:
        raise CodecError(f"a body of {body_bytes} bytes, at most {max_body_bytes} are read")
    if body_bytes != len(body):
        raise CodecError(f"a body of {len(body)} bytes, the header says {body_bytes}")
    if crc != zlib.crc32(body, zlib.crc32(summary)):
        raise CodecError("the CRC does not match: the message was damaged on its way")
    return _read(_HEADER, summary), body


def _read(what: Kind, packed: bytes | memoryview) -> Any:
    reader = Reader(packed)
    value = what.read(reader)
    reader.end()
    return value


_HEADER = kind(Header, "Header")
_GROUP = kind(Group, "Group")


def _check(group: Group) -> None:
    for fault in group_faults(group):
        raise CodecError(fault)
