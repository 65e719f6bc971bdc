"""A learner without ranks: an update takes a drawn time, and the actors are told its version."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from tests.bench.scale.actors import Handle
from tests.bench.scale.load import Load


class SimulatedLearners:
    """What driver and fleet ask of `Learners`. The batch stays where the queue has put it, as ranks fetch it there.

    version: of the policy. Where an update begins late, the time it takes is still its own.
    """

    def __init__(self, load: Load) -> None:
        self.version = 0
        self._load = load
        self._draw = random.Random(load.seed)

    async def update(self, payloads: Any) -> UpdateSums:
        seconds = self._load.update_s * math.exp(self._draw.gauss(0.0, self._load.update_sigma))
        await asyncio.sleep(seconds)
        self.version += 1
        return UpdateSums(tokens=1, forward_tokens=1, computed_tokens=1, attended=1, steps=1, seconds=seconds)

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        yield

    async def give(self, actors: Mapping[int, Handle], *, anew: bool) -> SyncTimes:
        """The version to all of them, one call a host: in a run rank 0 calls the actors, which is not the driver."""
        began = time.monotonic()
        by_host: dict[Any, list[int]] = defaultdict(list)
        for number, handle in actors.items():
            by_host[handle.host].append(number)
        await asyncio.gather(*(host.use_version.remote(numbers, self.version) for host, numbers in by_host.items()))
        return SyncTimes(total_s=time.monotonic() - began)
