"""The receiving end of a weight update on CPUs: a `gloo` backend for vLLM's weight-transfer interface.

Both ends cut the stream of parameters into buckets by one rule, vLLM's own: a bucket closes once it holds more than
`packed_buffer_size_bytes`. The sending end is `learner/weight_sender.py`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """What the sender tells a worker: where to meet, its place in the group, and how the stream is cut."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    packed_buffer_size_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    dtype: torch.dtype
    shape: list[int]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, NCCLWeightTransferUpdateInfo]):
    """Worker side. `checksum` is the CRC-32 of all bytes of the last update, for the sender to compare."""

    init_info_cls = GlooInitInfo
    update_info_cls = NCCLWeightTransferUpdateInfo
    supports_draft_weight_update = False
    checksum = 0

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        timeout = timedelta(seconds=init_info.timeout_s)
        store = dist.TCPStore(init_info.master_address, init_info.master_port, init_info.world_size, False, timeout)
        rendezvous = dist.PrefixStore("weights", store)
        self._group: Any = dist.ProcessGroupGloo(rendezvous, rank, init_info.world_size, timeout)
        self._bucket_bytes = init_info.packed_buffer_size_bytes

    def start_weight_update(self) -> None:
        # Layers keep packed copies of their weights on CPUs: a plain load_weights would leave them half updated.
        initialize_layerwise_reload(self.model)
        self.checksum = 0

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator, which raises where there is none; CPU copies are done already.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        parameters = [
            Parameter(name, getattr(torch, dtype), list(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        for bucket in buckets(parameters, self._bucket_bytes):
            sizes = [p.size_bytes for p in bucket]
            packed = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
            self._group.broadcast([packed], options).wait()
            self.checksum = zlib.crc32(packed.numpy().data, self.checksum)
            # Cloning aligns each piece: a wider type cannot be viewed at an odd byte offset.
            pieces = zip(bucket, packed.split(sizes), strict=True)
            self.model.load_weights([(p.name, piece.clone().view(p.dtype).view(p.shape)) for p, piece in pieces])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_heads()

    def shutdown(self) -> None:
        self._group = None

    def _repack_tied_heads(self) -> None:
        """Rebuild the packed copy that a head tied to the embedding keeps; the reload does not know of it.

        Without this the logits are silently those of the old head.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


def buckets(parameters: list[Parameter], limit_bytes: int) -> Iterator[list[Parameter]]:
    """Cut as vLLM's `pack_tensors` does: a bucket closes with the parameter that takes it over the limit."""
    bucket: list[Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(p.size_bytes for p in bucket) > limit_bytes:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def register() -> None:
    """Make the backend known to vLLM (entry point `vllm.general_plugins`); a second call does nothing."""
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "actors.weight_receiver", "GlooWeightTransferEngine")
