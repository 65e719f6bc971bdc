"""The sending end of a weight update: one calling code for vLLM's NCCL engine on GPUs and our gloo engine on CPUs.

Only rank 0 opens the group and talks to the actors; the other ranks join the gathers. The receiving end of gloo is
`actors/weight_receiver.py`; both cut the stream of parameters into buckets by vLLM's own rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import Tensor, nn
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors

from configs.schema import RunConfig
from learner.gather import by_layer, gathered_parameters


class WeightTransferError(RuntimeError):
    """A broadcast did not reach every actor whole; names who was waited for."""


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Where the group meets and how the stream is cut; `timeout_s` bounds every wait of the group."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    packed_buffer_size_bytes: int
    timeout_s: float


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    """vLLM's trainer-side round trip with the bytes going over gloo. `checksum`: CRC-32 of the last update's bytes."""

    init_info_cls = GlooTrainerInitInfo
    checksum = 0
    _gloo: Any

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: WeightSource | None = None) -> Self:
        if source is None:
            raise ValueError("the gloo weight transfer needs a source of weights")
        engine = cls(client=client, source=source, packed_buffer_size_bytes=init_info.packed_buffer_size_bytes)
        worker_info = {k: v for k, v in asdict(init_info).items() if k != "rank"} | {"rank_offset": 1}
        timeout = timedelta(seconds=init_info.timeout_s)
        # The workers wait in the rendezvous for rank 0, so both sides must be under way at once.
        with ThreadPoolExecutor(max_workers=1) as side:
            workers = side.submit(client.init_weight_transfer_engine, worker_info)
            store = dist.TCPStore(
                init_info.master_address,
                init_info.master_port,
                init_info.world_size,
                True,
                timeout,
                wait_for_workers=False,
            )
            engine._gloo = dist.ProcessGroupGloo(dist.PrefixStore("weights", store), 0, init_info.world_size, timeout)
            workers.result()
        return engine

    def _broadcast(self, source: WeightSource, meta: list[ParamMeta]) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        pairs, self.checksum = self._checked_iter(source, meta), 0
        while (bucket := pack_tensors(pairs, lambda item: item[1], self.packed_buffer_size_bytes)) is not None:
            self.checksum = zlib.crc32(bucket.packed_tensor.numpy().data, self.checksum)
            self._gloo.broadcast([bucket.packed_tensor], options).wait()


class Zero3Source(WeightSource):
    """The parameters of a ZeRO-3 module under their Hugging Face names, whole, in the wire's dtype."""

    def __init__(self, module: nn.Module, wire_dtype: torch.dtype) -> None:
        self._module, self._wire_dtype = module, wire_dtype

    def metadata(self) -> list[ParamMeta]:
        # A partitioned parameter's own shape is (0,); DeepSpeed keeps the whole one aside.
        return [
            ParamMeta(name, self._wire_dtype, tuple(p.ds_shape))
            for layer in by_layer(self._module.named_parameters())
            for name, p in layer
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return gathered_parameters(self._module, self._wire_dtype)


class ActorsClient:
    """vLLM's control calls, fanned out to independent engines, each with its own place in the group.

    `version` is set before a send and given to the actors when the weights are in. Every wait has a time limit.
    """

    def __init__(self, actors: Sequence[ActorHandle], workers_per_actor: int, timeout_s: float) -> None:
        self._actors, self._workers, self._timeout_s = actors, workers_per_actor, timeout_s
        self.version = 0
        self.received: list[int | None] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = init_info["rank_offset"]
        requests = [
            WeightTransferInitRequest(init_info={**init_info, "rank_offset": first + i * self._workers})
            for i in range(len(self._actors))
        ]
        self._all("join the weight group", "init_weight_transfer_engine", requests)

    def start_weight_update(self) -> None:
        self._all("pause for new weights", "start_weight_update", [])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        request = WeightTransferUpdateRequest(update_info=update_info)
        self._all("receive weights", "update_weights", [request] * len(self._actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        versions = [self.version if weight_version is None else int(weight_version)] * len(self._actors)
        self.received = self._all("load weights", "finish_weight_update", versions)

    def _all(self, what: str, method: str, arguments: Sequence[Any]) -> list[Any]:
        calls = [
            getattr(actor, method).remote(*([arguments[i]] if arguments else []))
            for i, actor in enumerate(self._actors)
        ]
        done, late = ray.wait(calls, num_returns=len(calls), timeout=self._timeout_s)
        if late:
            ray.get(done)  # an actor that failed is the cause, the late ones wait for it
            names = ", ".join(str(i) for i, call in enumerate(calls) if call in late)
            raise WeightTransferError(
                f"rollout actor {names} did not {what} within {self._timeout_s:g} s (sync.timeout_s)"
            )
        return list(ray.get(calls))


class WeightSender:
    """Rank 0's handle on the group: `send(version)` puts the module's weights into every actor."""

    def __init__(
        self, module: nn.Module, actors: Sequence[ActorHandle], address: str, port: int, config: RunConfig
    ) -> None:
        register()
        self._client = ActorsClient(actors, config.rollout.tensor_parallel, config.sync.timeout_s)
        world_size = 1 + len(actors) * config.rollout.tensor_parallel
        bucket_bytes = config.sync.bucket_mib << 20
        info: TrainerInitInfo = (
            NCCLTrainerInitInfo(address, port, world_size, packed_buffer_size_bytes=bucket_bytes, rank=0)
            if config.transfer_backend == "nccl"
            else GlooTrainerInitInfo(address, port, world_size, bucket_bytes, config.sync.timeout_s, rank=0)
        )
        source = Zero3Source(module, getattr(torch, config.model.dtype))
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def send(self, version: int) -> None:
        """Broadcast as `version`. Raises WeightTransferError when an actor is late or its bytes differ."""
        self._client.version = version
        self._engine.send_weights()
        sent = getattr(self._engine, "checksum", None)
        wrong = [i for i, crc in enumerate(self._client.received) if sent is not None and crc != sent]
        if wrong:
            raise WeightTransferError(f"rollout actor {wrong} received other bytes than were sent as version {version}")


def register() -> None:
    """Make the trainer side of `gloo` known to vLLM; a second call does nothing."""
    if "gloo" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine("gloo", "learner.weight_sender", "GlooTrainerWeightTransferEngine")
