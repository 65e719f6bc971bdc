"""Dataclasses as nested lists of what msgpack knows, and back from packed bytes, by their type hints.

A record is a list of its fields in their order. Known hints: int, float, bool, str, `StrEnum`s, other dataclasses,
`tuple[X, ...]`, `X | None` of what is no list, and the arrays `Ints` and `Floats` of shape (n,), which become
little-endian bytes. Bytes are read field by field, as the types ask for it: a nest of lists that no record has, which
would take 64 times its bytes, is refused where it begins.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgpack
import numpy as np

from envs.trajectory import Floats, Ints

MAX_ITEMS = 4096  # of one tuple: trajectories, segments, rows, credits
MAX_TEXT_BYTES = 2**20

if sys.byteorder != "little":
    raise ImportError("messages hold little-endian arrays as they lie in memory; this machine is big-endian")


class CodecError(ValueError):
    """A message that is no group, or a group that can be no message."""


class Reader:
    """What stands in packed bytes, one list head or one plain value at a time."""

    def __init__(self, packed: bytes | memoryview) -> None:
        self._packed = packed
        unpacker = msgpack.Unpacker(
            max_buffer_size=max(1, len(packed)), max_str_len=MAX_TEXT_BYTES, max_bin_len=len(packed),
            max_array_len=0, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
        unpacker.feed(packed)
        self._count, self._value, self._tell = unpacker.read_array_header, unpacker.unpack, unpacker.tell

    def count(self, label: str) -> int:
        """The length of the list that comes next; its items come then, one by one."""
        try:
            count: int = self._count()
        except (ValueError, msgpack.UnpackException) as error:
            raise self._fault(label, "list", error) from error
        return count

    def value(self, label: str, wanted: str) -> Any:
        """The plain value that comes next, of whatever type; `wanted` is what an error says instead of a list."""
        try:
            return self._value()
        except (ValueError, msgpack.UnpackException) as error:
            raise self._fault(label, wanted, error) from error

    def end(self) -> None:
        """Raises CodecError where something is left."""
        if self._tell() != len(self._packed):
            raise CodecError(f"{len(self._packed) - self._tell()} bytes behind the end")

    def _fault(self, label: str, wanted: str, error: Exception) -> CodecError:
        at = self._tell()
        found = _type_at(self._packed[at]) if at < len(self._packed) else "nothing"
        if found == wanted or (found not in _NEVER_PLAIN and wanted != "list"):
            return CodecError(f"{label}: cannot be unpacked: {error or type(error).__name__}")
        return CodecError(f"{label}: {found} instead of {wanted}")


# What a first byte up to the given one begins.
_TYPES = (
    (0x7F, "int"), (0x8F, "map"), (0x9F, "list"), (0xBF, "str"), (0xC0, "NoneType"), (0xC1, "no type"), (0xC3, "bool"),
    (0xC6, "bytes"), (0xC9, "extension"), (0xCB, "float"), (0xD3, "int"), (0xD8, "extension"), (0xDB, "str"),
    (0xDD, "list"), (0xDF, "map"), (0xFF, "int"),
)  # fmt: skip
_NEVER_PLAIN = ("nothing", "map", "list", "extension", "no type")


def _type_at(first: int) -> str:
    return next(name for last, name in _TYPES if first <= last)


class Kind(NamedTuple):
    """How values of one type are written to what msgpack knows, and read back. All raise CodecError.

    accept: what is made of a plain value; None for a type that is a list.
    """

    write: Callable[[Any], object]
    read: Callable[[Reader], Any]
    accept: Callable[[Any], Any] | None = None


def kind(hint: Any, label: str) -> Kind:
    """The kind of a type hint; `label` names the field in errors. Raises TypeError for a hint that is not known."""
    if hint in (Ints, Floats):
        return _array(np.dtype(np.int32 if hint == Ints else np.float32), label)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint)
    if isinstance(hint, types.UnionType):
        inner = kind(get_args(hint)[0], label)
        if inner.accept is not None:
            return _plain(_or_none(inner.write), _or_none(inner.accept), label, str(hint))
    if get_origin(hint) is tuple:
        return _tuple(kind(get_args(hint)[0], label), label)
    if isinstance(hint, type) and issubclass(hint, (int, float, str)):
        return _scalar(hint, label)
    raise TypeError(f"{label}: {hint} has no form in a message")


def _or_none(of_value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else of_value(value)


def _plain(write: Callable[[Any], object], accept: Callable[[Any], Any], label: str, wanted: str) -> Kind:
    return Kind(write, lambda reader: accept(reader.value(label, wanted)), accept)


def _record(cls: type[Any]) -> Kind:
    hints = get_type_hints(cls)
    kinds = [(field.name, kind(hints[field.name], f"{cls.__name__}.{field.name}")) for field in fields(cls)]
    readers = [part_kind.read for _, part_kind in kinds]

    def write(value: Any) -> object:
        _expect(cls, value, cls.__name__)
        return [part_kind.write(getattr(value, name)) for name, part_kind in kinds]

    def read(reader: Reader) -> Any:
        count = reader.count(cls.__name__)
        if count != len(readers):
            raise CodecError(f"{cls.__name__}: {count} fields instead of {len(readers)}")
        return cls(*[read_part(reader) for read_part in readers])

    return Kind(write, read)


def _tuple(inner: Kind, label: str) -> Kind:
    read_part = inner.read

    def write(value: Any) -> object:
        _expect(tuple, value, label)
        if len(value) > MAX_ITEMS:
            raise CodecError(f"{label}: {len(value)} of them, at most {MAX_ITEMS} fit a message")
        return [inner.write(part) for part in value]

    def read(reader: Reader) -> Any:
        count = reader.count(label)
        if count > MAX_ITEMS:
            raise CodecError(f"{label}: {count} of them, at most {MAX_ITEMS} are read")
        return tuple([read_part(reader) for _ in range(count)])

    return Kind(write, read)


def _array(dtype: np.dtype[Any], label: str) -> Kind:
    # One for all: most segments have two, and an array object takes a hundred times the bytes of its message.
    empty = np.frombuffer(b"", dtype)

    def write(value: Any) -> object:
        _expect(np.ndarray, value, label)
        if value.dtype != dtype or value.ndim != 1:
            raise CodecError(f"{label}: an array of {value.dtype} {value.shape}, expected {dtype} (n,)")
        return value.tobytes()

    def accept(value: Any) -> Any:
        _expect(bytes, value, label)
        if len(value) % dtype.itemsize:
            raise CodecError(f"{label}: {len(value)} bytes are no whole number of {dtype}")
        return np.frombuffer(value, dtype) if value else empty

    return _plain(write, accept, label, "bytes")


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

    def member(value: Any) -> Any:
        _expect(str, value, label)
        try:
            return cls(value)
        except ValueError:
            raise CodecError(f"{label}: {value[:40]!r} is none of {[str(known) for known in cls]}") from None

    is_enum = issubclass(cls, StrEnum)
    return _plain(write, member if is_enum else write, label, "str" if is_enum else cls.__name__)


def _expect(cls: type[Any], value: object, label: str) -> None:
    if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
        raise CodecError(f"{label}: {type(value).__name__} instead of {cls.__name__}")
