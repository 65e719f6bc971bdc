"""Where an engine's worker comes before a group for weights is opened. The other end: `learner/weight_meeting.py`."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch.distributed as dist


class Parallel(Protocol):
    """Of vLLM's parallel_config: this worker's place in its engine, and the engine's among its likes."""

    data_parallel_index: int
    world_size: int
    rank: int


def meet(
    parallel: Parallel, address: str, port: int, rank_offset: int, world_size: int, timeout_s: float
) -> tuple[dist.TCPStore, int]:
    """Go to the sender's store and wait there for all; the store, and this worker's rank in the group.

    Raises RuntimeError where somebody does not come, and where the sender is not there any more.
    """
    rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + rank_offset
    store = dist.TCPStore(address, port, world_size, False, timedelta(seconds=timeout_s))
    store.set(f"rank {rank}", "here")  # so that the sender can tell who did not come
    if store.get("group") != b"opens":  # waits for all
        raise RuntimeError("another one did not join the weight group")
    return store, rank
