"""What holds for any bytes: they are a group or a `CodecError`. `make fuzz` looks for some that are neither.

An input is a letter and the rest. `m`: the rest is a message as it is. Any other: the rest is the length of a summary,
the summary, and a body, of which a message with the right length and checksum is made: what lies behind these is read.

Needs numpy and msgpack alone, as `make fuzz` runs in an environment of its own.
"""

from __future__ import annotations

import zlib

import msgpack

from envs.codec import SCHEMA_VERSION, CodecError, decode_group, encode_group, read_header

MESSAGE, FITTED = b"m", b"f"


def look_at(data: bytes) -> bool:
    """Read an input in all ways a message is read; whether it is a group. Raises where a promise is broken."""
    message = data[1:] if data[:1] == MESSAGE else fitted(data[1:])
    try:
        header = read_header(message)
    except CodecError:
        header = None
    try:
        group = decode_group(message)
    except CodecError:
        return False
    if header is None:
        raise AssertionError("a message without a header has a body")
    again = encode_group(group)
    if read_header(again) != header:
        raise AssertionError("what was read is written as another group")
    return True


def fitted(rest: bytes) -> bytes:
    """A message of these parts with the right length and checksum."""
    size = rest[0] if rest else 0
    summary, body = rest[1 : 1 + size], rest[1 + size :]
    header = msgpack.packb((SCHEMA_VERSION, zlib.crc32(body, zlib.crc32(summary)), len(body), summary))
    return b"".join((b"SESA", header, body))


def parts_of(message: bytes) -> bytes:
    """The input that a valid message is the fitted message of."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(message[4:])
    summary: bytes = unpacker.unpack()[3]
    return FITTED + bytes([len(summary)]) + summary + message[4 + unpacker.tell() :]
