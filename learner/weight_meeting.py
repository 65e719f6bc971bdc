"""Where rank 0 waits for the engines' workers before a group for weights is opened. Their end: `actors/meeting.py`."""

from __future__ import annotations

import time
from concurrent.futures import Future

import torch.distributed as dist

from learner.actors_client import JOIN, ActorsClient

LOOK_S = 0.005  # between looks whether all have come


def wait_for_all(
    store: dist.Store, world_size: int, timeout_s: float, client: ActorsClient, workers: Future[None]
) -> None:
    """Until every worker has come to the store, which then are told to go on. `workers`: what becomes of their calls.

    In the group's own rendezvous the death of one would be found out at its time limit only, by all of them. Raises
    WeightTransferError naming who failed or is late; the others are told that there will be no group.
    """
    ranks, until = range(1, world_size), time.monotonic() + timeout_s
    try:
        while away := [rank for rank in ranks if not store.check([f"rank {rank}"])]:
            if time.monotonic() > until:
                raise client.late(JOIN, map(client.actor_of, away))
            if workers.done():
                workers.result()
            time.sleep(LOOK_S)
    except BaseException:
        store.set("group", "none")
        raise
    store.set("group", "opens")
