"""Rank 0's end of vLLM's NCCL transfer, with a limit to every wait. The other end: `actors/nccl_receiver.py`.

NCCL waits for its peers for ever, and vLLM's sender with it. Here the actors' answers decide: the first bad one breaks
the broadcast off, for rank 0 and, by a word in the store where the group met, for the engines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.utils.nccl import unpinned_nccl_env

from configs.breakable import BROKEN_OFF, Breakable, GroupBroke
from learner.actors_client import GRACE_S, ActorsClient, WeightTransferError
from learner.weight_meeting import wait_for_all


@dataclass
class NcclTrainerInitInfo(NCCLTrainerInitInfo):
    """timeout_s: of opening the group. master_port: not used, the store takes one that is free then."""

    backend: ClassVar[str] = "watched_nccl"

    timeout_s: float = field(kw_only=True)


class NcclSender(NCCLTrainerWeightTransferEngine):
    """vLLM's sender, of which every failure is a WeightTransferError that names the actor, where one is to blame."""

    init_info_cls = NcclTrainerInitInfo
    _client: ActorsClient
    _store: dist.Store

    @classmethod
    def trainer_init(cls, init_info: NCCLTrainerInitInfo, *, client: Any, source: WeightSource | None = None) -> Self:
        assert isinstance(init_info, NcclTrainerInitInfo)
        if source is None:
            raise ValueError("the NCCL weight transfer needs a source of weights")
        size_bytes, buffers = init_info.packed_buffer_size_bytes, init_info.packed_num_buffers
        engine = cls(client=client, source=source, packed_buffer_size_bytes=size_bytes, packed_num_buffers=buffers)
        engine._client, engine.client = client, Watched(client, engine.break_off)
        limit_s, world_size = init_info.timeout_s, init_info.world_size
        limit = timedelta(seconds=limit_s)
        engine._store = store = dist.TCPStore(
            init_info.master_address, 0, world_size, True, limit, wait_for_workers=False
        )
        worker_info = NCCLWeightTransferInitInfo(
            master_address=init_info.master_address, master_port=store.port, rank_offset=1, world_size=world_size,
            packed=True, packed_buffer_size_bytes=size_bytes, packed_num_buffers=buffers,
        )  # fmt: skip
        with ThreadPoolExecutor(max_workers=1) as side:
            told = worker_init_payload(worker_info) | {"timeout_s": limit_s}
            workers = side.submit(client.init_weight_transfer_engine, told)
            wait_for_all(store, world_size, limit_s, client, workers)
            group: Any = opened(store, world_size, limit_s, workers)
        engine.model_update_group = group
        return engine

    def break_off(self) -> None:
        """End the broadcast under way, here and at every engine; the group is of no use afterwards."""
        self._store.set(BROKEN_OFF, "")
        if self.model_update_group is not None:
            self.model_update_group.destroy()

    def _broadcast(self, source: Iterable[tuple[str, torch.Tensor]], meta: list[ParamMeta]) -> None:
        """What is broken off comes to its end: the other ranks gather to the last parameter, and rank 0 with them."""
        pairs: Any = iter(source)
        try:
            super()._broadcast(pairs, meta)
        except BaseException as error:
            for _ in pairs:
                pass
            try:
                if isinstance(error, GroupBroke):
                    self._client.blame()
                    raise WeightTransferError(f"the weight group broke: {error}") from error
                raise
            finally:
                self.break_off()


class Watched:
    """The line to the actors as vLLM's sender uses it, which is told at once that one of them failed or is late."""

    def __init__(self, client: ActorsClient, break_off: Callable[[], None]) -> None:
        self._client, self._break_off = client, break_off

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        """Runs beside the broadcast, which would not come to its end without them all."""
        try:
            self._client.update_weights(update_info)
        except WeightTransferError as error:
            self._break_off()
            raise self._client.who_stays_late(error) from error
        except BaseException:
            self._break_off()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.finish_weight_update(weight_version)


def opened(store: dist.Store, world_size: int, timeout_s: float, workers: Future[None]) -> Breakable:
    """Rank 0's communicator, once all have met at the store. `workers`: what becomes of the actors' calls.

    Raises WeightTransferError. A thread that NCCL does not give back then is left to itself.
    """
    opening: Future[Breakable] = Future()
    device = torch.accelerator.current_device_index()  # of this thread

    def open_group() -> None:
        try:
            with unpinned_nccl_env():
                group = StatelessProcessGroup(rank=0, world_size=world_size, store=store)
                opening.set_result(Breakable(PyNcclCommunicator(group, device=device)))
        except BaseException as error:
            opening.set_exception(error)

    threading.Thread(target=open_group, name="weight-group", daemon=True).start()
    try:
        both: list[Future[Any]] = [opening, workers]
        wait(both, timeout_s, FIRST_EXCEPTION)
        failed = opening.exception() if opening.done() else None
        if failed is not None:
            wait([workers], 2 * GRACE_S)  # an actor that died is the cause, and is heard of later
        if failed is None or workers.done():
            workers.result()
        return opening.result(timeout_s)
    except WeightTransferError:
        opening.add_done_callback(_leave)
        raise
    except Exception as error:
        raise WeightTransferError(f"the weight group could not be opened: {error}") from error


def _leave(opening: Future[Breakable]) -> None:
    """A group that comes to be when nobody wants it any more."""
    if opening.exception() is None:
        opening.result(0).destroy()
