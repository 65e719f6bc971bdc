"""vLLM's NCCL transfer as we drive it, without GPUs: who gets which bytes, and who is named when one breaks.

Our sender, client and receivers and vLLM's engines, packing, communicators and store are real; NCCL's library and
CUDA's streams are not (`fake_nccl.py`). An actor is a thread for each worker of its engine; Ray's answers are futures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError, RayError
from torch import Tensor, nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.model_executor.model_loader import mtp_validation  # noqa: F401  # seconds, at the first update else

from actors import nccl_receiver
from actors.engine_arguments import TRANSFERS
from actors.nccl_receiver import NcclReceiver
from actors.weight_receiver import register
from configs import breakable
from configs.schema import RunConfig
from learner import actors_client, nccl_sender, weight_source
from learner.actors_client import WeightTransferError
from learner.gather import gathered_parameters
from learner.weight_sender import WeightSender
from tests.learner.fake_nccl import Communicator, Library, on_gpu, pretend

pytestmark = pytest.mark.timeout(60)

TIMEOUT_S = 40.0
AT_ONCE_S = 20.0  # well below that limit, and enough for a machine that does other things
LATE_S = 3.0  # the limit where somebody does not come
END = threading.Event()  # of a test: whoever hangs goes on


class Died(Exception):
    """The actor's process is gone."""


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pretend(monkeypatch)
    ray = SimpleNamespace(wait=waited, get=lambda call: call.result(0))
    monkeypatch.setattr(actors_client, "ray", ray)
    monkeypatch.setattr(actors_client, "GRACE_S", 0.5)
    monkeypatch.setattr(nccl_sender, "GRACE_S", 0.1)
    monkeypatch.setattr(nccl_receiver, "LOOK_S", 0.02)
    monkeypatch.setattr(breakable, "GRACE_S", 0.05)  # a receiver is held up in NCCL's call here
    END.clear()
    before = set(threading.enumerate())
    yield
    END.set()
    for communicator in Communicator.made:
        communicator.aborted.set()
    # Whoever is left would go on with the real Ray, and start one.
    left, until = set(threading.enumerate()) - before, time.monotonic() + 20
    for thread in left:
        thread.join(max(0.0, until - time.monotonic()))
    assert not [thread for thread in left if thread.is_alive()]


def waited(calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
    done = wait(calls, timeout).done
    return [call for call in calls if call in done], [call for call in calls if call not in done]


def in_thread(call: Any, *arguments: Any) -> Future[Any]:
    """What becomes of a call; one that never ends keeps nobody from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Worker:
    """A worker of an engine on a GPU of its own; `manner` is of its second bucket."""

    def __init__(self, gpu: int, rank: int, workers: int, manner: str) -> None:
        parallel = SimpleNamespace(data_parallel_index=0, world_size=workers, rank=rank)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        model: Any = self
        self.engine = NcclReceiver(config, config, torch.device("cpu"), model)
        self.gpu, self.manner = gpu, manner
        self.loaded: dict[str, Tensor] = {}
        self.buckets = 0

    def join(self, info: dict[str, Any]) -> None:
        on_gpu(self.gpu)
        self.engine.shutdown()
        if self.manner == "stays away":
            END.wait()
        if self.manner == "dies while joining":
            raise Died
        self.engine.init_transfer_engine(self.engine.parse_init_info(info))

    def take(self, info: dict[str, Any]) -> None:
        on_gpu(self.gpu)
        self.buckets, self.loaded = 0, {}
        if self.manner == "fails at once":
            raise RuntimeError("no memory left")
        self.engine.update_weights(info)

    def load_weights(self, pairs: list[tuple[str, Tensor]]) -> None:
        self.buckets += 1
        if self.buckets == 2 and self.manner == "fails half-way":
            raise RuntimeError("no memory left")
        if self.buckets == 2 and self.manner == "dies half-way":
            raise Died
        if self.buckets == 2 and self.manner == "hangs":
            END.wait()
        self.loaded |= {name: tensor.clone() for name, tensor in pairs}


class Actor:
    """`actor.method.remote(...)` of a rollout actor whose engine has these workers; the last one has the manner."""

    def __init__(self, number: int, workers: int, manner: str = "") -> None:
        self.workers = [
            Worker(10 * number + i + 1, i, workers, manner if i == workers - 1 else "") for i in range(workers)
        ]
        self.told: list[dict[str, Any]] = []
        self.answers: list[Future[Any]] = []
        self.version = -1
        self.init_weight_transfer_engine = SimpleNamespace(remote=lambda info: self._asked("join", info))
        self.update_weights = SimpleNamespace(remote=lambda info, version: self._asked("take", info, version))

    def _asked(self, method: str, info: dict[str, Any], version: int = -1) -> Future[Any]:
        self.told.append(info)
        self.answers.append(in_thread(self._all, method, info, version))
        return self.answers[-1]

    def _all(self, method: str, info: dict[str, Any], version: int) -> Any:
        """As vLLM's executor does: the answers of all workers, or the first error there is."""
        calls = [in_thread(getattr(worker, method), info) for worker in self.workers]
        while not all(call.done() for call in calls):
            if any(call.done() and call.exception() for call in calls):
                break
            time.sleep(0.005)
        try:
            [call.result(0) for call in calls if call.done()]
        except Died:
            raise RayActorError(error_msg="The actor died") from None
        except Exception as error:
            raise RayError(f"traceback\n{type(error).__name__}: {error}") from error
        self.version = version
        return SimpleNamespace(pause_s=0.25, load_s=0.5, checksum=None)


def model() -> nn.Module:
    """Four buckets of 1 MiB in float32."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(700, 500), nn.Linear(500, 700), nn.Linear(700, 500), nn.Linear(500, 3))


def fleet(*manners: str, workers: int = 1) -> dict[int, Any]:
    """Actors 4, 5, ..."""
    return {4 + i: Actor(4 + i, workers, manner) for i, manner in enumerate(manners)}


def connected(
    module: nn.Module, actors: dict[int, Any], dtype: str = "float32", timeout_s: float = TIMEOUT_S
) -> WeightSender:
    workers = len(next(iter(actors.values())).workers)
    config = RunConfig.model_validate(
        {
            "model": {"dtype": dtype},
            "rollout": {"actors": len(actors), "gpus_per_actor": 1, "tensor_parallel": workers},
            "deepspeed": {"gpus_per_rank": 1},
            "sync": {"timeout_s": timeout_s, "bucket_mib": 1},
        }
    )
    assert config.transfer_backend == "nccl"
    return WeightSender(module, actors, "127.0.0.1", config)


def assert_has(actor: Actor, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    for worker in actor.workers:
        assert {name: (t.dtype, t.tolist()) for name, t in worker.loaded.items()} == {
            name: (dtype, p.detach().to(dtype).tolist()) for name, p in module.named_parameters()
        }


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all parameters that rank 0 gathers from now on: the other ranks wait for it at each."""
    names: list[str] = []

    def gathered(*arguments: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in gathered_parameters(*arguments):
            names.append(name)
            yield name, tensor

    monkeypatch.setattr(weight_source, "gathered_parameters", gathered)
    return names


@pytest.mark.parametrize(
    ("actors", "workers", "dtype"),
    [(1, 1, "float32"), (2, 1, "float32"), (1, 2, "float32"), (2, 2, "float32"), (2, 2, "bfloat16")],
)
def test_every_worker_of_every_engine_gets_every_weight(actors: int, workers: int, dtype: str) -> None:
    module, engines = model(), fleet(*[""] * actors, workers=workers)
    sender = connected(module, engines, dtype)
    world_size = 1 + actors * workers
    for i, actor in enumerate(engines.values()):
        info = actor.workers[0].engine.parse_init_info(actor.told[0])
        assert (info.rank_offset, info.world_size) == (1 + i * workers, world_size)
        assert (info.packed, info.packed_buffer_size_bytes, info.timeout_s) == (True, 1 << 20, TIMEOUT_S)
        groups = [worker.engine.model_update_group._communicator for worker in actor.workers]
        assert [(group.rank, group.world_size) for group in groups] == [
            (1 + i * workers + j, world_size) for j in range(workers)
        ]
    for version in (7, 8):
        times = sender.send(version)
        assert (times.pause_s, times.load_s) == (0.25, 0.5)
        for actor in engines.values():
            assert actor.version == version
            assert actor.told[-1] == {
                "names": [name for name, _ in module.named_parameters()],
                "dtype_names": [dtype] * 8,
                "shapes": [list(p.shape) for p in module.parameters()],
            }
            assert_has(actor, module, getattr(torch, dtype))
            assert {worker.buckets for worker in actor.workers} == {4 if dtype == "float32" else 2}
        with torch.no_grad():
            next(module.parameters()).mul_(2)


def test_a_second_group_takes_the_place_of_the_first() -> None:
    module, actors = model(), fleet("", "")
    first = connected(module, {4: actors[4]})
    first.send(1)
    first.close()
    connected(module, actors).send(2)
    assert [actor.version for actor in actors.values()] == [2, 2]
    assert_has(actors[5], module)


@pytest.mark.parametrize(
    ("manner", "workers", "said"),
    [
        ("fails at once", 1, "failed to take the weights: RuntimeError: no memory left"),
        ("fails half-way", 1, "failed to take the weights: RuntimeError: no memory left"),
        ("fails half-way", 2, "failed to take the weights: RuntimeError: no memory left"),
        ("dies half-way", 1, "failed to take the weights: The actor died"),
        ("dies half-way", 2, "failed to take the weights: The actor died"),
        ("hangs", 1, f"did not take the weights within {LATE_S:g} s (sync.timeout_s)"),
    ],
)
def test_an_actor_that_breaks_a_broadcast_is_named_and_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, manner: str, workers: int, said: str
) -> None:
    """Rank 0 gathers to the end with the others, and the other engine leaves NCCL to join the next group."""
    module, actors = model(), fleet("", manner, workers=workers)
    timeout_s = LATE_S if manner == "hangs" else TIMEOUT_S
    monkeypatch.setattr(actors_client, "GRACE_S", 6.0 if manner == "hangs" else 0.5)
    sender, names, began = connected(module, actors, timeout_s=timeout_s), counted(monkeypatch), time.monotonic()
    with pytest.raises(WeightTransferError) as caught:
        sender.send(1)
    assert str(caught.value) == f"rollout actor 5 {said}"
    assert caught.value.actors == (5,)
    assert time.monotonic() - began < AT_ONCE_S
    assert names == [name for name, _ in module.named_parameters()]
    with pytest.raises(RayError, match=r"the learner has broken the broadcast off, or died"):
        actors[4].answers[-1].result(5)
    sender.close()
    connected(module, {4: actors[4]}).send(2)
    assert actors[4].version == 2
    assert_has(actors[4], module)


def test_an_engine_of_which_one_part_hangs_answers_with_its_other_and_all_are_named() -> None:
    actors = fleet("", "hangs", workers=2)
    sender = connected(model(), actors, timeout_s=LATE_S)
    with pytest.raises(WeightTransferError, match=r"^rollout actor 4, 5 did not take the weights within 3 s"):
        sender.send(1)


def breaks_at_rank_0(monkeypatch: pytest.MonkeyPatch, bucket: int, wait_for: Callable[[], object]) -> None:
    """NCCL tells of a peer that is gone at rank 0's next call."""
    calls, handed_over = count(), Library.ncclBroadcast

    def broadcast(library: Library, *arguments: Any) -> None:
        if arguments[5].rank == 0 and next(calls) == bucket:
            wait_for()
            raise RuntimeError("NCCL error: remote process exited or there was a network error")
        handed_over(library, *arguments)

    monkeypatch.setattr(Library, "ncclBroadcast", broadcast)


def test_who_died_is_named_where_nccl_tells_rank_0_first(monkeypatch: pytest.MonkeyPatch) -> None:
    module, actors = model(), fleet("", "dies half-way")
    sender, names = connected(module, actors), counted(monkeypatch)
    breaks_at_rank_0(monkeypatch, 2, lambda: wait([actors[5].answers[-1]], 5))
    with pytest.raises(WeightTransferError, match=r"^rollout actor 5 failed to take the weights: The actor died$"):
        sender.send(1)
    assert names == [name for name, _ in module.named_parameters()]


def test_a_wire_that_broke_nobody_knows_why_is_blamed_on_those_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = connected(model(), fleet(""))

    def until_asked() -> None:
        while not sender._client._calls:
            time.sleep(0.005)

    breaks_at_rank_0(monkeypatch, 1, until_asked)
    with pytest.raises(WeightTransferError, match=r"^rollout actor 4 did not take the weights$"):
        sender.send(1)


def test_a_gather_that_fails_is_no_actors_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = fleet("")
    sender = connected(model(), actors)

    def lost(name: str) -> tuple[str, Tensor]:
        raise RuntimeError("a learner rank is gone")

    def gathered(*_: Any) -> Iterator[tuple[str, Tensor]]:
        yield from map(lost, ["0.weight"])

    monkeypatch.setattr(weight_source, "gathered_parameters", gathered)
    with pytest.raises(RuntimeError, match=r"^a learner rank is gone$"):
        sender.send(1)
    with pytest.raises(RayError, match=r"the learner has broken the broadcast off, or died"):
        actors[4].answers[-1].result(5)


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("stays away", f"did not join the weight group within {LATE_S:g} s (sync.timeout_s)"),
        ("dies while joining", "failed to join the weight group: The actor died"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_actor_that_does_not_join_is_named(manner: str, said: str, workers: int) -> None:
    module, actors, began = model(), fleet("", manner, workers=workers), time.monotonic()
    with pytest.raises(WeightTransferError) as caught:
        connected(module, actors, timeout_s=LATE_S if manner == "stays away" else TIMEOUT_S)
    assert (str(caught.value), caught.value.actors) == (f"rollout actor 5 {said}", (5,))
    assert time.monotonic() - began < AT_ONCE_S
    with pytest.raises(RayError, match=r"another one did not join the weight group|wait timeout"):
        actors[4].answers[-1].result(5)
    connected(module, {4: actors[4]}).send(2)
    assert_has(actors[4], module)


def test_an_actor_that_dies_while_nccl_opens_the_group_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All have come, and NCCL waits for one of them for ever."""

    def begins(rank: int) -> None:
        if rank == 2:
            raise Died

    monkeypatch.setattr(Library, "begins", staticmethod(begins))
    began = time.monotonic()
    with pytest.raises(WeightTransferError, match=r"^rollout actor 5 failed to join the weight group: The actor died$"):
        connected(model(), fleet("", ""))
    assert time.monotonic() - began < AT_ONCE_S


def test_a_group_that_rank_0_cannot_open_is_nobody_elses_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(rank: int) -> None:
        if rank == 0:
            raise RuntimeError("NCCL error: unhandled system error")

    monkeypatch.setattr(Library, "begins", staticmethod(begins))
    says = r"^the weight group could not be opened: NCCL error: unhandled system error$"
    with pytest.raises(WeightTransferError, match=says) as caught:
        connected(model(), fleet("", ""), timeout_s=LATE_S)
    assert caught.value.actors == ()


def test_both_ends_are_told_the_same_backend() -> None:
    register()
    assert nccl_sender.NcclTrainerInitInfo.backend == TRANSFERS["nccl"]
    assert WeightTransferEngineFactory._registry[TRANSFERS["nccl"]]() is NcclReceiver
