"""Dataclasses as nested lists of what msgpack knows, and back, by their type hints.

A record is a list of its fields in their order. Known hints: int, float, bool, str, `StrEnum`s, other dataclasses,
`tuple[X, ...]`, `X | None`, and the arrays `Ints` and `Floats` of shape (n,), which become little-endian bytes.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from envs.trajectory import Floats, Ints

MAX_ITEMS = 4096  # of one tuple: trajectories, segments, rows, credits
MAX_TEXT_BYTES = 2**20

if sys.byteorder != "little":
    raise ImportError("messages hold little-endian arrays as they lie in memory; this machine is big-endian")


class CodecError(ValueError):
    """A message that is no group, or a group that can be no message."""


class Kind(NamedTuple):
    """How values of one type are written to what msgpack knows, and read back. Both raise CodecError."""

    write: Callable[[Any], object]
    read: Callable[[Any], Any]


def kind(hint: Any, label: str) -> Kind:
    """The kind of a type hint; `label` names the field in errors. Raises TypeError for a hint that is not known."""
    if hint in (Ints, Floats):
        return _array(np.dtype(np.int32 if hint == Ints else np.float32), label)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint)
    if isinstance(hint, types.UnionType):
        inner = kind(get_args(hint)[0], label)
        return Kind(
            lambda value: None if value is None else inner.write(value),
            lambda value: None if value is None else inner.read(value),
        )
    if get_origin(hint) is tuple:
        return _tuple(kind(get_args(hint)[0], label), label)
    if isinstance(hint, type) and issubclass(hint, (int, float, str)):
        return _scalar(hint, label)
    raise TypeError(f"{label}: {hint} has no form in a message")


def _record(cls: type[Any]) -> Kind:
    hints = get_type_hints(cls)
    kinds = [(field.name, kind(hints[field.name], f"{cls.__name__}.{field.name}")) for field in fields(cls)]

    def write(value: Any) -> object:
        _expect(cls, value, cls.__name__)
        return [part_kind.write(getattr(value, name)) for name, part_kind in kinds]

    def read(value: Any) -> Any:
        _expect(list, value, cls.__name__)
        if len(value) != len(kinds):
            raise CodecError(f"{cls.__name__}: {len(value)} fields instead of {len(kinds)}")
        return cls(*[part_kind.read(part) for (_, part_kind), part in zip(kinds, value, strict=True)])

    return Kind(write, read)


def _tuple(inner: Kind, label: str) -> Kind:
    def write(value: Any) -> object:
        _expect(tuple, value, label)
        if len(value) > MAX_ITEMS:
            raise CodecError(f"{label}: {len(value)} of them, at most {MAX_ITEMS} fit a message")
        return [inner.write(part) for part in value]

    def read(value: Any) -> Any:
        _expect(list, value, label)
        return tuple([inner.read(part) for part in value])

    return Kind(write, read)


def _array(dtype: np.dtype[Any], label: str) -> Kind:
    def write(value: Any) -> object:
        _expect(np.ndarray, value, label)
        if value.dtype != dtype or value.ndim != 1:
            raise CodecError(f"{label}: an array of {value.dtype} {value.shape}, expected {dtype} (n,)")
        return value.tobytes()

    def read(value: Any) -> Any:
        _expect(bytes, value, label)
        if len(value) % dtype.itemsize:
            raise CodecError(f"{label}: {len(value)} bytes are no whole number of {dtype}")
        return np.frombuffer(value, dtype)

    return Kind(write, read)


def _scalar(cls: type[Any], label: str) -> Kind:
    """Whole numbers, floats (finite; whole numbers count, and are read as floats), text, truth values, enumerations."""

    def write(value: Any) -> object:
        if cls is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        _expect(cls, value, label)
        if cls is float and not math.isfinite(value):
            raise CodecError(f"{label}: {value} is no finite number")
        if cls is str and len(value.encode(errors="surrogatepass")) > MAX_TEXT_BYTES:
            raise CodecError(f"{label}: more than {MAX_TEXT_BYTES} bytes of text")
        return value

    def read(value: Any) -> Any:
        if not issubclass(cls, StrEnum):
            return write(value)
        try:
            return cls(value)
        except ValueError:
            raise CodecError(f"{label}: {value!r} is none of {[str(member) for member in cls]}") from None

    return Kind(write, read)


def _expect(cls: type[Any], value: object, label: str) -> None:
    if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
        raise CodecError(f"{label}: {type(value).__name__} instead of {cls.__name__}")
