"""A broadcast reaches every actor whole, or says which one it did not reach."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import nn
from vllm.distributed.weight_transfer import ParamMeta

from configs.schema import RunConfig
from learner import weight_sender
from learner.actors_client import WeightTransferError
from learner.weight_sender import WeightSender, Zero3Source, cut, pack
from orchestration.cluster import ROOT


class Receiver:
    """An actor's receiving end without an engine: keeps what would be loaded, or misbehaves when weights are sent."""

    def __init__(self, manner: str) -> None:
        from actors.weight_receiver import GlooWeightTransferEngine

        self._manner = manner
        self._engine = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
        parallel: Any = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        self._engine.parallel_config = parallel
        self._engine.device = torch.device("cpu")
        self.loaded: dict[str, list[float]] = {}
        self.version = -1

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        if self._manner == "stays away":
            time.sleep(30)
        self._engine.init_transfer_engine(self._engine.parse_init_info(info))

    def update_weights(self, info: dict[str, Any], version: int) -> Any:
        if self._manner == "fails":
            raise RuntimeError("no memory left")
        if self._manner == "is late":
            time.sleep(30)
        self._engine.model = self
        self._engine.update_weights(info)
        self.version = version
        checksum = self._engine.checksum
        if self._manner == "damages" and checksum is not None:
            checksum ^= 1
        return SimpleNamespace(pause_s=0.25, load_s=0.5, checksum=checksum)

    def load_weights(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        self.loaded |= {name: tensor.flatten().tolist() for name, tensor in pairs}

    def state(self) -> tuple[int, dict[str, list[float]]]:
        return self.version, self.loaded


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(700, 500), nn.Linear(500, 2))  # two buckets of 1 MiB


def receivers(*manners: str) -> list[Any]:
    remote: Any = ray.remote(Receiver)
    actors = [remote.options(num_cpus=0).remote(manner) for manner in manners]
    ray.get([actor.state.remote() for actor in actors])  # up: what takes time from here on is their manner
    return actors


def connected(module: nn.Module, actors: list[Any], timeout_s: float = 20.0, checksum: bool = True) -> WeightSender:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sync = {"timeout_s": timeout_s, "checksum": checksum, "bucket_mib": 1}
    return WeightSender(module, actors, "127.0.0.1", port, RunConfig.model_validate({"sync": sync}))


@pytest.mark.usefixtures("ray_here")
class TestBroadcast:
    def test_every_actor_gets_every_weight_and_the_version(self) -> None:
        module, actors = model(), receivers("", "")
        sender = connected(module, actors)
        times = sender.send(7)
        own = {name: p.flatten().tolist() for name, p in module.named_parameters()}
        assert ray.get([a.state.remote() for a in actors]) == [(7, own)] * 2
        assert (times.pause_s, times.load_s) == (0.25, 0.5)
        assert times.gather_s > 0
        assert times.transfer_s >= 0
        with torch.no_grad():
            next(module.parameters()).zero_()
        sender.send(8)
        version, loaded = ray.get(actors[1].state.remote())
        assert (version, set(loaded["0.weight"])) == (8, {0.0})

    def test_a_second_group_takes_the_place_of_the_first(self) -> None:
        module, actors = model(), receivers("", "")
        first = connected(module, actors[:1])
        first.send(1)
        first.close()
        connected(module, actors).send(2)
        assert [version for version, _ in ray.get([a.state.remote() for a in actors])] == [2, 2]

    def test_an_actor_with_other_bytes_is_named(self) -> None:
        sender = connected(model(), receivers("", "damages"))
        with pytest.raises(
            WeightTransferError, match=r"^rollout actor 1 received other bytes than were sent as version 3"
        ):
            sender.send(3)

    def test_nobody_works_out_checksums_unasked(self) -> None:
        actors = receivers("damages")
        sender = connected(model(), actors, checksum=False)
        sender.send(3)
        assert sender._client.received[0].checksum is None
        assert ray.get(actors[0].state.remote())[0] == 3

    def test_an_actor_that_fails_is_named_at_once(self) -> None:
        sender = connected(model(), receivers("", "fails"))
        began = time.monotonic()
        with pytest.raises(WeightTransferError, match=r"^rollout actor 1 failed to take the weights: .*no memory left"):
            sender.send(1)
        assert time.monotonic() - began < 10

    def test_an_actor_that_is_late_is_named(self) -> None:
        sender = connected(model(), receivers("is late"), timeout_s=2.0)
        with pytest.raises(WeightTransferError, match=r"^rollout actor 0 did not take the weights within 2 s"):
            sender.send(1)

    def test_an_actor_that_does_not_join_is_named(self) -> None:
        with pytest.raises(WeightTransferError, match=r"rollout actor 1 did not join the weight group within 3 s"):
            connected(model(), receivers("", "stays away"), timeout_s=3.0)


def test_a_bucket_closes_with_the_parameter_that_takes_it_over_the_limit() -> None:
    assert cut([3, 3, 3, 10, 1], 5) == [2, 2, 1]
    assert cut([10, 10], 5) == [1, 1]
    assert cut([1, 1], 5) == [2]


def test_a_weight_that_was_not_announced_is_refused() -> None:
    memory = torch.empty(64, dtype=torch.uint8)
    announced = [ParamMeta("a", torch.float32, (2,)), ParamMeta("b", torch.float32, (3,))]
    pairs = [("a", torch.tensor([1.0, 2.0])), ("b", torch.tensor([3.0, 4.0, 5.0]))]
    assert pack(iter(pairs), announced, memory).view(torch.float32).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="weight b: a came"):
        pack(iter([pairs[0], pairs[0]]), announced, memory)


def test_tensors_that_last_are_not_overwritten_by_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks gather into memory that is used again; a sender that collects before it copies needs its own."""

    def gathered(*_: object) -> Iterator[tuple[str, torch.Tensor]]:
        memory = torch.empty(2)
        for number in range(3):
            yield f"w{number}", memory.fill_(number)

    monkeypatch.setattr(weight_sender, "gathered_parameters", gathered)
    module = nn.Linear(2, 2)
    lasting = list(Zero3Source(module, torch.float32, lasting=True))
    assert [tensor.tolist() for _, tensor in lasting] == [[0, 0], [1, 1], [2, 2]]
    passing = list(Zero3Source(module, torch.float32))
    assert [tensor.tolist() for _, tensor in passing] == [[2, 2]] * 3
