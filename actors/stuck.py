"""Where a process is stuck, out of what Python's `faulthandler` writes of it, or whatever it wrote in its place."""

from __future__ import annotations

import re
from pathlib import PurePath

from configs.shown import one_line

_FRAME = re.compile(rb'^  File "([^"\n]{1,1000})", line (\d{1,7}) in ([^\n]{1,200})$', re.MULTILINE)
_FRAMES, _MOST_CHARACTERS = 5, 400
_LOOP = "worker_episodes.py"  # from here on it is the worker's own


def stuck_in(written: bytes) -> str:
    """The innermost calls, such as ` in read (socket.py:7) < step (my_env.py:40)`; empty where none is told."""
    calls: list[str] = []
    for path, line, function in _FRAME.findall(written):
        name = PurePath(path.decode(errors="replace")).name
        if name == _LOOP or len(calls) == _FRAMES:
            break
        calls.append(f"{function.decode(errors='replace')} ({name}:{int(line)})")
    return f" in {one_line(' < '.join(calls), _MOST_CHARACTERS)}" if calls else ""
