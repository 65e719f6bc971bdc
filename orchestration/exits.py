"""How our commands end: their exit statuses, and an error as a line for each cause."""

from __future__ import annotations

import sys

from configs.shown import safe

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def fail(error: object, status: int) -> int:
    """Say what is wrong, one line a problem; returns the status to end with."""
    for line in str(error).splitlines():
        print(f"error: {safe(line)}", file=sys.stderr)
    return status
