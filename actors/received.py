"""What an actor tells of one weight update."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Received:
    """Seconds: until the engine stood ready, waiting for bytes, loading. checksum: CRC-32 of its bytes, if asked."""

    pause_s: float
    wait_s: float
    load_s: float
    checksum: int | None
