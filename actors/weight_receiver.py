"""The receiving end of a weight update: a `gloo` backend for vLLM's weight-transfer interface, and what a worker adds.

The sender says how many parameters lie in each bucket. The sending end is `learner/weight_sender.py`; NCCL's receiving
end is `actors/nccl_receiver.py`.
"""

from __future__ import annotations

import math
import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.meeting import meet
from actors.received import Received


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """What the sender tells a worker: where to meet, its place in the group, whether to work out checksums."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    checksum: bool
    timeout_s: float


@dataclass
class GlooUpdateInfo(NCCLWeightTransferUpdateInfo):
    """What comes: each parameter's name, dtype and shape, and the number of parameters in each bucket."""

    counts: list[int]

    def buckets(self) -> list[list[Parameter]]:
        columns = zip(self.names, self.dtype_names, self.shapes, strict=True)
        parameters = iter([Parameter(name, getattr(torch, dtype), list(shape)) for name, dtype, shape in columns])
        return [[next(parameters) for _ in range(count)] for count in self.counts]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    dtype: torch.dtype
    shape: list[int]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class BucketMemory:
    """Memory for buckets, used again once no tensor looks into it any more.

    A layer that is put together from several parameters keeps the first ones until the last is there.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray[Any, Any], weakref.ref[Any]]] = []

    def take(self, size: int) -> Tensor:
        """(size,) bytes."""
        free = [i for i, (block, user) in enumerate(self._blocks) if user() is None and len(block) >= size]
        block = self._blocks.pop(free[0])[0] if free else np.empty(size, np.uint8)
        view = block[:size]  # the tensor keeps it alive, and so do all tensors cut out of it
        self._blocks.append((block, weakref.ref(view)))
        return torch.from_numpy(view)


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Worker side. Bucket k + 1 is received while k is loaded.

    Of the last update: `checksum` is the CRC-32 of its bytes where the sender asked for it, `waited_s` the time spent
    waiting for bytes.
    """

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    supports_draft_weight_update = False
    checksum: int | None = None
    waited_s = 0.0

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        address, port, world_size = init_info.master_address, init_info.master_port, init_info.world_size
        store, rank = meet(self.parallel_config, address, port, init_info.rank_offset, world_size, init_info.timeout_s)
        rendezvous, timeout = dist.PrefixStore("weights", store), timedelta(seconds=init_info.timeout_s)
        self._group: Any = dist.ProcessGroupGloo(rendezvous, rank, world_size, timeout)
        self._with_checksum = init_info.checksum
        self._memory = BucketMemory()

    def start_weight_update(self) -> None:
        # Layers keep packed copies of their weights on CPUs: a plain load_weights would leave them half updated.
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator, which raises where there is none; CPU copies are done already.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        self.checksum, self.waited_s = 0 if self._with_checksum else None, 0.0
        buckets = update_info.buckets()
        arriving = self._receive(buckets[0])
        for number, bucket in enumerate(buckets):
            packed, work = arriving
            began = time.monotonic()
            work.wait()
            self.waited_s += time.monotonic() - began
            if number + 1 < len(buckets):
                arriving = self._receive(buckets[number + 1])
            if self.checksum is not None:
                self.checksum = zlib.crc32(packed.numpy().data, self.checksum)
            self.model.load_weights(unpacked(packed, bucket))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_heads()

    def shutdown(self) -> None:
        self._group = None

    def _receive(self, bucket: Sequence[Parameter]) -> tuple[Tensor, Any]:
        """Where a bucket will be, and the work to wait for until it is there."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        packed = self._memory.take(sum(p.size_bytes for p in bucket))
        return packed, self._group.broadcast([packed], options)

    def _repack_tied_heads(self) -> None:
        """Rebuild the packed copy that a head tied to the embedding keeps; the reload does not know of it.

        Without this the logits are silently those of the old head.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


class WeightTaking:
    """What vLLM's worker can do beside its own (`worker_extension_cls`): a weight update that can be made again.

    `take_weights` is a whole one. One in parts is `begin_weights`, `take_part` for each, `finish_weight_update`.
    """

    weight_transfer_engine: Any
    vllm_config: Any
    start_weight_update: Any
    update_weights: Any
    finish_weight_update: Any
    shutdown_weight_transfer_engine: Any
    _weight_update_active: bool

    def take_weights(self, update_info: dict[str, Any]) -> Received:
        """Receive and load. After an error the weights are of no use, and a later call that gets all of them works."""
        began = time.monotonic()
        self.begin_weights()
        ready = time.monotonic()
        self.take_part(update_info)
        self.finish_weight_update()
        waited_s = getattr(self.weight_transfer_engine, "waited_s", 0.0)
        checksum = getattr(self.weight_transfer_engine, "checksum", None)
        return Received(ready - began, waited_s, time.monotonic() - ready - waited_s, checksum)

    def begin_weights(self) -> None:
        """Get ready for all weights, whatever became of the update before."""
        self._break_off()
        self.start_weight_update()

    def take_part(self, update_info: dict[str, Any]) -> None:
        """Receive and load a part of an update. An error is the end of the whole of it."""
        try:
            self.update_weights(update_info)
        except BaseException:
            self._end_update()
            raise

    def leave_weight_group(self) -> None:
        """Whatever became of its last update."""
        self._break_off()
        self.shutdown_weight_transfer_engine()

    def _break_off(self) -> None:
        """The learner went away between two parts, or had no more to do with them."""
        if self._weight_update_active:
            self._end_update()
            self._weight_update_active = False

    def _end_update(self) -> None:
        """Layers that got a part of their parameters would take the next update's for the rest."""
        with set_current_vllm_config(self.vllm_config):
            self.weight_transfer_engine.finish_weight_update()


def unpacked(packed: Tensor, bucket: Sequence[Parameter]) -> list[tuple[str, Tensor]]:
    """The bucket's parameters, which lie end to end in packed (bytes,): views into it where their dtype allows."""
    pairs = []
    end = 0
    for p in bucket:
        start, end = end, end + p.size_bytes
        piece = packed[start:end]
        # A wider type cannot be viewed at an odd byte: cloning moves it to an even one.
        aligned = piece if start % p.dtype.itemsize == 0 else piece.clone()
        pairs.append((p.name, aligned.view(p.dtype).view(p.shape)))
    return pairs


def register() -> None:
    """Make the backends known to vLLM (entry point `vllm.general_plugins`); a second call does nothing."""
    for name, module, engine in (
        ("gloo", "actors.weight_receiver", "GlooWeightTransferEngine"),
        ("watched_nccl", "actors.nccl_receiver", "NcclReceiver"),
    ):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)


# vLLM imports this for `worker_extension_cls` in every worker's process, which finds no entry point of ours.
register()
