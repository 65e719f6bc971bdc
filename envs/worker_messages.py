"""What a rollout actor and its environment workers say to each other: msgpack, each message behind its length.

A worker runs code that anybody may have written: all the actor makes of its answers is numbers, texts and bytes.
"""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass
from typing import Any

import msgpack

# Bytes of a message without its prefix; far more than an episode takes.
LONGEST_MESSAGE = 2**24
PREFIX = struct.Struct("<I")
_MOST_SAID = 500

TELL = signal.SIGUSR1  # makes a worker say where it is, not as a message
# What kind of reply it is: done; the environment raised; it ran out of memory, and the worker has ended.
DONE, RAISED, NO_MEMORY = "done", "raised", "no memory"


class BadMessage(ValueError):
    """Not what the other side may say; the message goes on from "its worker said"."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an episode's environment.

    `episode`: which one, of those of this actor. `state`: it, as the last call that changed it left it, for a worker
    that does not have it so; empty before the first.
    """

    name: str
    episode: int
    state: bytes
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """`value`: of DONE what the call returned, of RAISED what it raised. `state`: the episode now, if it has changed.

    The state is a pickle that only workers may open.
    """

    kind: str
    value: Any
    state: bytes = b""


def call_bytes(call: Call) -> bytes:
    return _framed((call.name, call.episode, call.state, call.arguments))


def reply_bytes(reply: Reply) -> bytes:
    """Raises ValueError, TypeError or OverflowError for what cannot be said."""
    return _framed((reply.kind, reply.value, reply.state))


def read_call(message: bytes) -> Call:
    name, episode, state, arguments = _plain(message)
    return Call(name, episode, state, tuple(arguments))


def read_reply(message: bytes) -> Reply:
    """Raises BadMessage."""
    try:
        kind, value, state = _plain(message)
    except Exception as error:  # the library has many names for bad bytes
        raise BadMessage("what cannot be read") from error
    said = isinstance(value, str) and len(value) <= _MOST_SAID
    if kind not in (DONE, RAISED, NO_MEMORY) or not isinstance(state, bytes) or (kind == RAISED and not said):
        raise BadMessage("what is no reply")
    return Reply(kind, value, state)


def length_of(prefix: bytes | bytearray) -> int:
    """Of the message behind it. Raises BadMessage."""
    (length,) = PREFIX.unpack_from(prefix)
    if length > LONGEST_MESSAGE:
        raise BadMessage(f"more than fits into a message ({length} bytes, at most {LONGEST_MESSAGE})")
    return int(length)


def said_of(error: BaseException) -> str:
    """An error on one line, not too long a one."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MOST_SAID else text[: _MOST_SAID - 3] + "..."


def message_bytes(message: bytes) -> bytes:
    """It behind its length. Raises ValueError when it is too long."""
    if len(message) > LONGEST_MESSAGE:
        raise ValueError(f"a message of {len(message)} bytes, at most {LONGEST_MESSAGE} can be sent")
    return PREFIX.pack(len(message)) + message


def _framed(content: tuple[Any, ...]) -> bytes:
    # Texts may hold halves of characters: what is read as text is written as the same text.
    return message_bytes(msgpack.packb(content, unicode_errors="surrogatepass"))


def _plain(message: bytes) -> Any:
    return msgpack.unpackb(message, unicode_errors="surrogatepass", use_list=True)
