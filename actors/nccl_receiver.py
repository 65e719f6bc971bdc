"""An engine's end of vLLM's NCCL transfer, which stops where the learner does. The other: `learner/nccl_sender.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from actors.meeting import meet
from configs.breakable import BROKEN_OFF, Breakable

LOOK_S = 0.2  # between looks whether the sender has given up
END_S = 30.0  # for the last look, which may be the one that ends the broadcast


@dataclass(kw_only=True)
class NcclInitInfo(NCCLWeightTransferInitInfo):
    """What the sender tells a worker; timeout_s: for all to come."""

    timeout_s: float


class NcclReceiver(NCCLWeightTransferEngine):
    """vLLM's receiving engine, which would wait for ever for a sender that has died or lost another engine."""

    init_info_cls = NcclInitInfo
    _store: dist.Store | None = None

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        assert isinstance(init_info, NcclInitInfo)
        address, port = init_info.master_address, init_info.master_port
        assert address is not None
        assert port is not None
        group = init_info.rank_offset, init_info.world_size
        self._store, _ = meet(self.parallel_config, address, port, *group, init_info.timeout_s)
        super().init_transfer_engine(init_info)
        communicator: Any = self.model_update_group
        self.model_update_group: Any = Breakable(communicator)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Raises RuntimeError where the sender gives up meanwhile, or is not there any more."""
        if self._store is None:
            raise RuntimeError("the engine is in no weight group")
        with ended_by(self._store, self.model_update_group):
            super().receive_weights(update_info)

    def shutdown(self) -> None:
        super().shutdown()
        self._store = None


@contextmanager
def ended_by(store: dist.Store, group: Breakable) -> Iterator[None]:
    """Break the group's broadcasts off once the store says so, or is gone with the sender; then raises RuntimeError."""
    done, broken = threading.Event(), threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            if _given_up(store):
                broken.set()
                group.destroy()
                return

    watcher = threading.Thread(target=look, name="weights-broken-off", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(END_S)
    # A broadcast may come to its end, with any bytes, because the sender has broken off, before the watcher has looked.
    if broken.is_set() or _given_up(store):
        raise RuntimeError("the learner has broken the broadcast off, or died")


def _given_up(store: dist.Store) -> bool:
    try:
        return bool(store.check([BROKEN_OFF]))
    except RuntimeError:
        return True
