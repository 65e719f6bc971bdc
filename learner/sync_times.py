"""Where the seconds of a weight broadcast go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SyncTimes:
    """Seconds; of the slowest actor where actors differ. The phases overlap, so they may add up to more than the total.

    pause_s: until the engines stand between two steps, ready to load. gather_s: making whole parameters out of the
    ranks' parts. transfer_s: what waiting for the wire adds to both. load_s: putting the weights into the engines'
    layers. total_s: from the call until every actor samples under the new weights.
    """

    pause_s: float = 0.0
    gather_s: float = 0.0
    transfer_s: float = 0.0
    load_s: float = 0.0
    total_s: float = 0.0
