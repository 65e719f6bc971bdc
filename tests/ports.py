"""A port for a test's own server."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Of this machine alone, free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
