"""Files that are on disk, bytes and name, when the call returns."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait for the disk. Raises OSError, such as of a full disk, and may leave a part of it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(path: Path, data: bytes) -> None:
    """Put a file's new contents in place of the old: whoever reads it finds the one or the other, whole.

    After a crash `.NAME.partial` may lie beside it. Raises OSError.
    """
    partial = partial_of(path)
    write_durably(partial, data)
    rename_durably(partial, path)


def partial_of(final: Path) -> Path:
    """Where a file or folder lies until it is whole."""
    return final.with_name(f".{final.name}.partial")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename_durably(old: Path, new: Path) -> None:
    """Put a file in the place of another one, or a folder where none is: at any moment there is the old or the new."""
    os.rename(old, new)
    sync(new.parent)
