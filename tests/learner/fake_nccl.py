"""NCCL without GPUs: threads stand in for processes with a GPU each, and memory is copied where NCCL would send it.

The seam is NCCL's library as vLLM calls it (`NCCLLibrary`) and what vLLM asks of torch's CUDA; communicators, the store
they meet at, packing and both transfer engines are vLLM's own code. As on GPUs, a broadcast is only handed over to a
stream by the sender and done once all have come for it, and whoever waits for a stream waits for ever, unless its
communicator is aborted. A receiver waits at once: on a GPU the work behind it on the stream would.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.device_communicators.pynccl_wrapper import ncclDataTypeEnum, ncclUniqueId
from vllm.distributed.weight_transfer import base, nccl_common, nccl_engine, packed_tensor

from learner import nccl_sender

LOOK_S = 0.002
BYTES = {ncclDataTypeEnum.from_torch(dtype): dtype.itemsize for dtype in (torch.uint8, torch.float32)}
HERE = threading.local()  # device: this thread's; stream: the current one


class Rendezvous:
    """The ranks of one communicator: who has come, and what each gave for its n-th collective."""

    def __init__(self) -> None:
        self.lock, self.world_size = threading.Lock(), 0
        self.ranks: set[int] = set()
        self.given: dict[int, dict[int, tuple[Any, ...]]] = defaultdict(dict)
        self.moved: set[int] = set()


class Communicator:
    made: ClassVar[list[Communicator]] = []

    def __init__(self, meeting: Rendezvous, rank: int) -> None:
        self.meeting, self.rank, self.calls = meeting, rank, 0
        self.aborted = threading.Event()
        Communicator.made.append(self)

    def give(self, what: str, root: int, pointer: int, size: int) -> int:
        with self.meeting.lock:
            number, self.calls = self.calls, self.calls + 1
            self.meeting.given[number][self.rank] = (what, root, size, pointer)
        return number

    def wait(self, number: int) -> None:
        """Until all have come to this collective, or this communicator is aborted, which returns as well."""
        meeting = self.meeting
        while not self.aborted.wait(LOOK_S):
            with meeting.lock:
                given = meeting.given[number]
                if len(given) < meeting.world_size:
                    continue
                if len(kinds := {one[:3] for one in given.values()}) > 1:
                    raise AssertionError(f"ranks disagree about collective {number}: {kinds}")
                if number not in meeting.moved:
                    meeting.moved.add(number)
                    root = int(next(iter(given.values()))[1])
                    what, _, size, source = given[root]
                    for rank, (*_, target) in given.items():
                        if what == "broadcast" and rank != root:
                            ctypes.memmove(target, source, size)
                return


class Stream:
    """Work that was handed over and not waited for."""

    known: ClassVar[dict[int, Stream]] = {}

    def __init__(self, device: int = 0) -> None:
        self.cuda_stream = len(Stream.known) + 1
        Stream.known[self.cuda_stream] = self
        self.work = list[tuple[Communicator, int]]()

    def synchronize(self) -> None:
        while self.work:
            communicator, number = self.work[0]
            communicator.wait(number)
            self.work.pop(0)


class Library:
    """`NCCLLibrary`: its calls as PyNcclCommunicator makes them. begins: what `ncclCommInitRank` does first."""

    meetings: ClassVar[dict[bytes, Rendezvous]] = {}
    begins: Any = staticmethod(lambda rank: None)

    def __init__(self, path: str | None = None) -> None: ...

    def ncclGetRawVersion(self) -> int:
        return 22907

    def ncclGetVersion(self) -> str:
        return "2.29.7"

    def ncclGetUniqueId(self) -> ncclUniqueId:
        made = ncclUniqueId()
        ctypes.memmove(ctypes.addressof(made.internal), secrets.token_bytes(128), 128)
        return made

    def ncclCommInitRank(self, world_size: int, unique_id: ncclUniqueId, rank: int) -> Communicator:
        Library.begins(rank)
        meeting = Library.meetings.setdefault(bytes(unique_id.internal), Rendezvous())
        with meeting.lock:
            if rank in meeting.ranks or rank >= world_size or meeting.world_size not in (0, world_size):
                raise RuntimeError(f"NCCL error: rank {rank} of {world_size} beside {meeting.ranks}")
            meeting.world_size = world_size
            meeting.ranks.add(rank)
        communicator = Communicator(meeting, rank)
        communicator.wait(communicator.give("init", 0, 0, 0))
        return communicator

    def ncclAllReduce(
        self, send: Any, receive: Any, count: int, dtype: int, op: int, communicator: Communicator, stream: Any
    ) -> None:
        communicator.wait(communicator.give("all_reduce", 0, 0, count))

    def ncclBroadcast(
        self, send: Any, receive: Any, count: int, dtype: int, root: int, communicator: Communicator, stream: Any
    ) -> None:
        assert not communicator.aborted.is_set(), "used after it was freed"
        number = communicator.give("broadcast", root, receive.value, count * BYTES[dtype])
        if communicator.rank == root:
            Stream.known[stream.value].work.append((communicator, number))
        else:
            communicator.wait(number)

    def ncclCommAbort(self, communicator: Communicator) -> None:
        communicator.aborted.set()


class _Torch:
    """torch, but for what needs a GPU."""

    def __init__(self) -> None:
        self.device = _Device
        self.accelerator = SimpleNamespace(
            current_device_index=lambda: getattr(HERE, "device", 0),
            device_index=lambda _: nullcontext(),
            synchronize=lambda: current_stream().synchronize(),
        )
        self.cuda = SimpleNamespace(
            Stream=Stream, stream=_on_stream, current_stream=current_stream, is_available=lambda: True
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _AnyDevice(type):
    """Stands in for the class torch.device: every GPU is the CPU."""

    def __call__(cls, name: str) -> torch.device:
        assert name.startswith("cuda:")
        return torch.device("cpu")

    def __instancecheck__(cls, it: object) -> bool:
        return isinstance(it, torch.device)


class _Device(metaclass=_AnyDevice): ...


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on threads have GPUs; `on_gpu` says which."""
    stand_in: Any = _Torch()
    for module in (base, nccl_common, nccl_engine, nccl_sender, packed_tensor, pynccl):
        monkeypatch.setattr(module, "torch", stand_in)
    monkeypatch.setattr(pynccl, "NCCLLibrary", Library)
    monkeypatch.setattr(pynccl, "current_stream", current_stream)
    packed_tensor._get_streams.cache_clear()
    on_gpu(0)


def on_gpu(device: int) -> None:
    """This thread."""
    HERE.device, HERE.stream = device, None


def current_stream() -> Stream:
    if getattr(HERE, "stream", None) is None:
        HERE.stream = Stream()
    stream: Stream = HERE.stream
    return stream


@contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    before, HERE.stream = current_stream(), stream
    try:
        yield
    finally:
        HERE.stream = before
