"""Weights that engines read where the learner's ranks hold them: vLLM's CUDA IPC between processes, without CUDA."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import RunConfig
from learner.actors_client import WeightTransferError
from orchestration.cluster import ROOT
from tests.learner.one_gpu import pretend
from tests.learner.test_gather import SHAPES, Sliced, wholes
from tests.ports import free_port

pytestmark = pytest.mark.timeout(120)

TIMEOUT_S = 5.0
NAMES = [f"p{i}" for i in range(len(SHAPES))]


class Receiver:
    """An actor's end without an engine, on a GPU of its own name; `manner` says how it misbehaves at its second part.

    What it was given is looked at when all has come: by then the bucket holds other parameters.
    """

    def __init__(self, folder: Path, gpu: int) -> None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
        from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter
        from vllm.model_executor.model_loader import mtp_validation  # noqa: F401  # seconds, at the first part else

        pretend(folder, f"GPU {gpu}")
        self._engine = IPCWeightTransferEngine.__new__(IPCWeightTransferEngine)
        self._engine.device = torch.device("cpu", 0)
        model: Any = self
        self._engine.model = model
        self._engine._packed_importer = PackedBufferImporter()
        self._manner, self.version = "", -1

    def behave(self, manner: str) -> None:
        self._manner, self.version = manner, -1

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        self._engine.init_transfer_engine(self._engine.parse_init_info(info))

    def begin_weights(self) -> float:
        self._parts, self._tensors = 0, dict[str, Tensor]()
        return 0.25

    def take_part(self, info: dict[str, Any]) -> float:
        self._parts += 1
        if self._parts == 2 and self._manner == "fails":
            raise RuntimeError("no memory left")
        if self._parts == 2 and self._manner == "is late":
            time.sleep(2 * TIMEOUT_S)
        if self._parts == 2 and self._manner == "dies":
            os._exit(1)
        self._engine.update_weights(info)
        return 0.5

    def end_weights(self, version: int) -> float:
        self.version = version
        self._engine._packed_importer.close()
        return 0.125

    def load_weights(self, pairs: list[tuple[str, Tensor]]) -> None:
        self._tensors |= dict(pairs)

    def state(self) -> tuple[int, int, dict[str, list[float]]]:
        """Version, parts, and all parameters."""
        return self.version, self._parts, {name: tensor.flatten().tolist() for name, tensor in self._tensors.items()}


class Rank:
    """A learner's rank with slices of a small module in place of a policy."""

    def __init__(self, folder: Path, rank: int, ranks: int, port: int) -> None:
        pretend(folder, f"GPU {rank}")
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        self._rank, self._module = rank, Sliced(rank, ranks)

    def connect(self, actors: dict[int, Any], config: RunConfig) -> None:
        from learner import weight_sender

        sender = weight_sender.WeightSender(self._module, actors, "", config, self._rank)
        # A part holds few of the module's small parameters, and the largest fits.
        assert sender._engine.packed_buffer_size_bytes == 1 << 20
        sender._engine.packed_buffer_size_bytes = 800
        self._sender = sender

    def send(self, version: int) -> Any:
        return self._sender.send(version)


class Learner:
    """So many ranks, on as many GPUs."""

    def __init__(self, folder: Path, ranks: int) -> None:
        rank, port = remote(Rank), free_port()
        self._ranks = [rank.remote(folder, i, ranks, port) for i in range(ranks)]

    def connect(self, actors: dict[int, Any]) -> None:
        count = len(self._ranks)
        config = RunConfig.model_validate(
            {
                "rollout": {"actors": count, "gpus_per_actor": 0.5},
                "deepspeed": {"ranks": count, "gpus_per_rank": 0.5},
                "cluster": {"colocated": True},
                "sync": {"timeout_s": TIMEOUT_S, "bucket_mib": 1},
            }
        )
        ray.get([rank.connect.remote(actors, config) for rank in self._ranks], timeout=60)

    def send(self, version: int) -> list[Any]:
        """What comes of it on each rank."""
        return [outcome(call) for call in [rank.send.remote(version) for rank in self._ranks]]


@dataclass(frozen=True)
class Stage:
    folder: Path
    actors: list[Any]
    pair: Learner  # on the first two GPUs
    alone: Learner  # on the first


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    folder, receiver = tmp_path_factory.mktemp("gpus"), remote(Receiver)
    actors = [receiver.remote(folder, i) for i in range(2)]
    stage = Stage(folder, actors, Learner(folder, 2), Learner(folder, 1))
    ray.get([actor.behave.remote("") for actor in actors])  # up: what takes time from here on is their manner
    yield stage
    ray.shutdown()


def remote(cls: type) -> Any:
    made: Any = ray.remote(cls)
    return made.options(num_cpus=0)


def outcome(call: Any) -> Any:
    try:
        return ray.get(call, timeout=60)
    except WeightTransferError as error:
        return getattr(error, "cause", error)


def own() -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in zip(NAMES, wholes(), strict=True)}


def test_every_engine_reads_every_weight_on_its_own_gpu(stage: Stage) -> None:
    stage.pair.connect(dict(enumerate(stage.actors)))
    for version in (3, 4):
        first, second = stage.pair.send(version)
        assert (first.pause_s, first.load_s, second.total_s) == (0.25, 2 * 0.5 + 0.125, 0.0)
        assert ray.get([actor.state.remote() for actor in stage.actors]) == [(version, 2, own())] * 2
    assert {path.name.split()[1] for path in stage.folder.iterdir()} == {"0", "1"}


def test_one_gpu_is_enough(stage: Stage) -> None:
    stage.alone.connect({0: stage.actors[0]})
    [times] = stage.alone.send(5)
    assert times.total_s > 0
    assert ray.get(stage.actors[0].state.remote()) == (5, 2, own())


def test_an_engine_on_another_gpu_is_told_so(stage: Stage) -> None:
    stage.alone.connect({1: stage.actors[1]})
    [failure] = stage.alone.send(6)
    assert "IPC handle not found for GPU UUID GPU 1" in str(failure)
    assert failure.actors == (1,)


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("fails", "rollout actor 1 failed to take the weights: RuntimeError: no memory left"),
        ("is late", f"rollout actor 1 did not take the weights within {TIMEOUT_S:g} s (sync.timeout_s)"),
        ("dies", "rollout actor 1 failed to take the weights"),
    ],
)
def test_an_engine_that_breaks_half_way_leaves_no_rank_waiting(stage: Stage, manner: str, said: str) -> None:
    ray.get([actor.behave.remote(how) for actor, how in zip(stage.actors, ("", manner), strict=True)])
    stage.pair.connect(dict(enumerate(stage.actors)))
    failure, other = stage.pair.send(7)
    assert said in str(failure)
    assert failure.actors == (1,)
    assert other.total_s == 0
    assert ray.get(stage.actors[0].state.remote())[0] == -1, "it has only a part of the weights"
    stage.pair.connect({0: stage.actors[0]})
    stage.pair.send(8)
    assert ray.get(stage.actors[0].state.remote()) == (8, 2, own())
