"""The sending end of a weight update: one calling code for vLLM's NCCL and CUDA IPC and our gloo engine on CPUs.

Only rank 0 opens the group and talks to the actors; the other ranks join the gathers. The receiving end of gloo is
`actors/weight_receiver.py`; what is added to NCCL's is in `learner/nccl_sender.py`.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from math import prod
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import Tensor, nn
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from configs.schema import RunConfig
from learner.actors_client import ActorsClient, WeightTransferError
from learner.nccl_sender import NcclTrainerInitInfo
from learner.parts_client import PartsClient
from learner.sync_times import SyncTimes
from learner.weight_meeting import wait_for_all
from learner.weight_source import Zero3Source

CHECK_S = 0.05  # between looks at whether an actor has given up while the wire is waited for


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Where the group meets and how the stream is cut; `timeout_s` bounds every wait of the group.

    The store takes a port that is free then. One that was free before may be an engine's by now.
    """

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    bucket_bytes: int
    checksum: bool
    timeout_s: float


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Rank 0's end. Bucket k + 1 is gathered and packed while k is on the wire.

    Of the last update: `checksum` is the CRC-32 of its bytes where asked for, `waited_s` the time spent waiting for the
    wire, `first_s` when its first bucket was handed over.
    """

    init_info_cls = GlooTrainerInitInfo
    checksum: int | None = None
    waited_s = 0.0
    first_s = 0.0
    _group: Any

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None) -> Self:
        if source is None:
            raise ValueError("the gloo weight transfer needs a source of weights")
        engine = cls(client=client, source=source)
        engine._open(source.metadata(), init_info)
        timeout = timedelta(seconds=init_info.timeout_s)
        # The store must be there before the workers look for it: who finds nothing tries again after a pause.
        address, limit_s, world_size = init_info.master_address, init_info.timeout_s, init_info.world_size
        store = dist.TCPStore(address, 0, world_size, True, timeout, wait_for_workers=False)
        worker_info = {k: v for k, v in asdict(init_info).items() if k not in ("rank", "bucket_bytes")}
        worker_info["master_port"] = store.port
        # The workers wait in the rendezvous for rank 0, so both sides must be under way at once.
        with ThreadPoolExecutor(max_workers=1) as side:
            workers = side.submit(client.init_weight_transfer_engine, worker_info | {"rank_offset": 1})
            wait_for_all(store, world_size, limit_s, client, workers)
            try:
                meeting = dist.PrefixStore("weights", store)
                engine._group = dist.ProcessGroupGloo(meeting, 0, world_size, timeout)
            except RuntimeError as error:
                workers.result()
                raise WeightTransferError(f"the weight group could not be opened: {error}") from error
            workers.result()
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        pairs = iter(self.source)
        try:
            self.client.begin(self._update_info)
            self._send(pairs)
        except BaseException:
            for _ in pairs:  # the other ranks gather to the end: rank 0 must not leave them waiting
                pass
            raise
        self.client.end()

    def shutdown(self) -> None:
        self._group = None

    def _open(self, meta: list[ParamMeta], init_info: GlooTrainerInitInfo) -> None:
        """Cut the stream of parameters, and lay out the memory of the buckets."""
        self._with_checksum = init_info.checksum
        counts = cut([size_bytes(m) for m in meta], init_info.bucket_bytes)
        self._update_info = {
            "names": [m.name for m in meta],
            "dtype_names": [str(m.dtype).removeprefix("torch.") for m in meta],
            "shapes": [list(m.shape) for m in meta],
            "counts": counts,
        }
        starts = [sum(counts[:i]) for i in range(len(counts))]
        self._buckets = [meta[start : start + n] for start, n in zip(starts, counts, strict=True)]
        largest = max(sum(map(size_bytes, bucket)) for bucket in self._buckets)
        self._memory = [torch.empty(largest, dtype=torch.uint8) for _ in self._buckets[:2]]

    def _send(self, pairs: Iterator[tuple[str, Tensor]]) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self.checksum, self.waited_s, self.first_s = 0 if self._with_checksum else None, 0.0, 0.0
        on_the_wire: deque[Any] = deque()
        for number, bucket in enumerate(self._buckets):
            if len(on_the_wire) == len(self._memory):
                self._wait_for(on_the_wire.popleft())
            packed = pack(pairs, bucket, self._memory[number % len(self._memory)])
            if self.checksum is not None:
                self.checksum = zlib.crc32(packed.numpy().data, self.checksum)
            self.first_s = self.first_s or time.monotonic()
            on_the_wire.append(self._group.broadcast([packed], options))
        while on_the_wire:
            self._wait_for(on_the_wire.popleft())

    def _wait_for(self, work: Any) -> None:
        """Until a bucket is sent; an actor that gives up meanwhile is found out before the group's time limit."""
        began, sent = time.monotonic(), threading.Event()
        work.get_future().add_done_callback(lambda _: sent.set())
        while not sent.wait(CHECK_S):
            self.client.check()
        self.waited_s += time.monotonic() - began
        try:
            work.wait()
        except RuntimeError as error:
            self.client.blame()
            raise WeightTransferError(f"the weight group broke: {error}") from error


class WeightSender:
    """A rank's handle on the group: `send(version)` puts the module's weights into every actor; actors: by number.

    address: of this rank's node, where the group meets. Rank 0 alone has a handle, but for CUDA IPC: there an engine
    reads the weights of the rank on its own GPU.
    """

    def __init__(
        self, module: nn.Module, actors: Mapping[int, ActorHandle], address: str, config: RunConfig, rank: int = 0
    ) -> None:
        register()
        backend, limit_s = config.transfer_backend, config.sync.timeout_s
        self._numbers, self._sends = list(actors), rank == 0
        client = PartsClient if backend == "ipc" else ActorsClient
        self._client = client(actors, config.rollout.tensor_parallel, limit_s)
        self._source = Zero3Source(
            module, getattr(torch, config.model.dtype), lasting=backend == "nccl", everywhere=backend == "ipc"
        )
        world_size = 1 + len(actors) * config.rollout.tensor_parallel
        bucket_bytes = config.sync.bucket_mib << 20
        info: TrainerInitInfo
        if backend == "nccl":
            info = NcclTrainerInitInfo(
                address, 0, world_size, packed_buffer_size_bytes=bucket_bytes, timeout_s=limit_s, rank=rank
            )
        elif backend == "ipc":
            # Its buffer must hold the largest parameter.
            room = max(bucket_bytes, *map(size_bytes, self._source.metadata()))
            info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=room, rank=rank)
        else:
            info = GlooTrainerInitInfo(address, world_size, bucket_bytes, config.sync.checksum, limit_s, rank=rank)
        self._engine: Any = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)

    def send(self, version: int) -> SyncTimes:
        """Broadcast as `version`. Raises WeightTransferError when an actor is late or fails, or its bytes differ."""
        began = time.monotonic()
        self._client.version = version
        self._engine.send_weights()
        total_s = time.monotonic() - began
        if not self._sends:
            return SyncTimes()
        if isinstance(self._client, PartsClient):
            self._client.raise_failure()
        received = self._client.received
        sent = getattr(self._engine, "checksum", None)
        wrong = [n for n, one in zip(self._numbers, received, strict=True) if sent is not None and one.checksum != sent]
        if wrong:
            names = ", ".join(map(str, wrong))
            raise WeightTransferError(
                f"rollout actor {names} received other bytes than were sent as version {version}", wrong
            )
        pause_s = max(one.pause_s for one in received)
        load_s = max(one.load_s for one in received)
        gather_s = self._source.seconds
        if isinstance(self._engine, GlooTrainerWeightTransferEngine):
            # The first bucket waits for the slowest engine's pause as well.
            transfer_s = self._engine.waited_s - max(0.0, pause_s - (self._engine.first_s - began))
        else:
            transfer_s = total_s - gather_s - pause_s - load_s
        return SyncTimes(pause_s, gather_s, max(0.0, transfer_s), load_s, total_s)

    def close(self) -> None:
        """Leave the group; waits for nobody."""
        self._engine.shutdown()


def cut(sizes: Sequence[int], limit_bytes: int) -> list[int]:
    """How many parameters go into each bucket, in order: a bucket closes with the one that takes it over the limit."""
    counts, size = [0], 0
    for one in sizes:
        if size > limit_bytes:
            counts.append(0)
            size = 0
        counts[-1] += 1
        size += one
    return counts


def pack(pairs: Iterator[tuple[str, Tensor]], bucket: Sequence[ParamMeta], memory: Tensor) -> Tensor:
    """The bucket's parameters end to end at the start of memory (bytes,). Raises ValueError where others come."""
    end = 0
    for expected in bucket:
        name, tensor = next(pairs)
        if (name, tensor.dtype, tuple(tensor.shape)) != (expected.name, expected.dtype, tuple(expected.shape)):
            raise ValueError(f"weight {expected.name}: {name} came, {tuple(tensor.shape)} of {tensor.dtype}")
        start, end = end, end + size_bytes(expected)
        memory[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return memory[:end]


def size_bytes(parameter: ParamMeta) -> int:
    return prod(parameter.shape) * parameter.dtype.itemsize


def register() -> None:
    """Make the trainer sides of our own known to vLLM; a second call does nothing."""
    for name, module, engine in (
        (GlooTrainerInitInfo.backend, "learner.weight_sender", "GlooTrainerWeightTransferEngine"),
        (NcclTrainerInitInfo.backend, "learner.nccl_sender", "NcclSender"),
    ):
        if name not in WeightTransferTrainerFactory._registry:
            WeightTransferTrainerFactory.register_engine(name, module, engine)
