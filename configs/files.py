"""Files that anybody may have written: only regular ones are opened, and no more is read than they may hold.

A named pipe that nobody writes to would be waited for without end, a device would give bytes without end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def open_file(path: Path | str) -> BinaryIO:
    """A regular file, or a link to one, to read from. Raises OSError, whose `strerror` is what is wrong."""
    try:
        # Without O_NONBLOCK to open a pipe is to wait for its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "the name holds a null character", str(path)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "Is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_file(path: Path | str, most_bytes: int) -> bytes:
    """All of a regular file of at most that many bytes. Raises OSError as `open_file`, and for a larger one."""
    with open_file(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"Has more than {most_bytes:,} bytes", str(path))
    return data


def json_object(path: Path | str, most_bytes: int) -> dict[str, Any]:
    """A JSON file that holds an object, of at most that many bytes. Raises ValueError: the path and what is wrong."""
    try:
        value = json.loads(read_file(path, most_bytes).decode())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: an object is expected")
    return value
