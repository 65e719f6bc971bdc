"""A broadcast reaches every actor whole, or says which one it did not reach."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayError
from torch import nn
from vllm.distributed.weight_transfer import ParamMeta

from configs.schema import RunConfig
from learner import actors_client, weight_source
from learner.actors_client import ActorsClient, WeightTransferError
from learner.weight_sender import WeightSender, cut, pack
from learner.weight_source import Zero3Source
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
        if self._manner == "dies":
            os._exit(1)
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
    sync = {"timeout_s": timeout_s, "checksum": checksum, "bucket_mib": 1}
    return WeightSender(module, dict(enumerate(actors)), "127.0.0.1", RunConfig.model_validate({"sync": sync}))


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
        ) as caught:
            sender.send(3)
        assert caught.value.actors == (1,)

    def test_nobody_works_out_checksums_unasked(self) -> None:
        actors = receivers("damages")
        sender = connected(model(), actors, checksum=False)
        sender.send(3)
        assert sender._client.received[0].checksum is None
        assert ray.get(actors[0].state.remote())[0] == 3

    def test_an_actor_that_fails_is_named_at_once(self) -> None:
        sender = connected(model(), receivers("", "fails"))
        began = time.monotonic()
        with pytest.raises(
            WeightTransferError, match=r"^rollout actor 1 failed to take the weights: .*no memory left"
        ) as caught:
            sender.send(1)
        assert caught.value.actors == (1,)
        assert time.monotonic() - began < 10

    def test_an_actor_that_is_late_is_named(self) -> None:
        sender = connected(model(), receivers("is late"), timeout_s=10.0)
        with pytest.raises(
            WeightTransferError, match=r"^rollout actor 0 did not take the weights within 10 s"
        ) as caught:
            sender.send(1)
        assert caught.value.actors == (0,)

    def test_an_actor_that_does_not_join_is_named(self) -> None:
        says = r"rollout actor 1 did not join the weight group within 10 s"
        with pytest.raises(WeightTransferError, match=says) as caught:
            connected(model(), receivers("", "stays away"), timeout_s=10.0)
        assert caught.value.actors == (1,)

    def test_an_actor_that_dies_before_it_joins_is_named_at_once(self) -> None:
        """The others leave the rendezvous with the sender, and join the next group."""
        module, actors = model(), receivers("", "dies", "")
        began = time.monotonic()
        with pytest.raises(WeightTransferError, match=r"^rollout actor 1 failed to join the weight group") as caught:
            connected(module, actors, timeout_s=60.0)
        assert caught.value.actors == (1,)
        assert time.monotonic() - began < 15
        connected(module, actors[::2]).send(1)
        assert [version for version, _ in ray.get([a.state.remote() for a in actors[::2]])] == [1, 1]
        assert time.monotonic() - began < 30


class Actor:
    """`actor.update_weights.remote(...)`, whose answer is a result, an error, or late (None)."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.update_weights = answer, self
        self.later: list[Any] = []

    def remote(self, info: Any, version: int) -> Actor:
        return self

    def looked_at(self) -> None:
        """Answers that come later come once they have been looked for often enough."""
        if self.answer is None and self.later:
            self.answer = self.later.pop()


def client(monkeypatch: pytest.MonkeyPatch, answers: dict[int, Any], workers: int = 1) -> ActorsClient:
    """A line to actors of these numbers, who have been told to take the weights."""

    def wait(calls: list[Actor], num_returns: int, timeout: float) -> tuple[list[Actor], list[Actor]]:
        for call in calls:
            call.looked_at()
        return [call for call in calls if call.answer is not None], [call for call in calls if call.answer is None]

    def get(call: Actor) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    monkeypatch.setattr(actors_client, "ray", SimpleNamespace(wait=wait, get=get))
    monkeypatch.setattr(actors_client, "GRACE_S", 0.05)
    actors: dict[int, Any] = {number: Actor(answer) for number, answer in answers.items()}
    line = ActorsClient(actors, workers, timeout_s=0.2)
    line.begin({})
    return line


def test_actors_are_called_by_their_numbers_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    line = client(monkeypatch, {4: "taken", 2: RayError("x\nOSError: no memory left"), 9: None})
    says = "^rollout actor 2 failed to take the weights: OSError: no memory left$"
    for look in (line.check, line.end, line.blame):
        with pytest.raises(WeightTransferError, match=says) as caught:
            look()
        assert caught.value.actors == (2,)


def test_all_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    line = client(monkeypatch, {9: None, 4: "taken", 2: None})
    line.check()  # nobody has given up
    says = r"^rollout actor 2, 9 did not take the weights within 0.2 s \(sync.timeout_s\)$"
    with pytest.raises(WeightTransferError, match=says) as caught:
        line.end()
    assert caught.value.actors == (2, 9)


def test_an_actor_that_died_is_to_blame_and_not_who_lost_the_wire_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = RayError("Connection reset by peer")
    line = client(monkeypatch, {3: wire, 5: wire, 8: RayActorError(error_msg="The actor died: out of memory")})
    says = "^rollout actor 8 failed to take the weights: The actor died: out of memory$"
    with pytest.raises(WeightTransferError, match=says) as caught:
        line.end()
    assert caught.value.actors == (8,)


def test_who_died_is_waited_for_where_the_others_lost_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who lost it say so at once, that somebody died is heard of later: and nobody else is to blame."""
    for look in ("check", "end", "blame"):
        line = client(monkeypatch, {3: RayError("Connection reset by peer"), 5: None, 8: None})
        line._calls[2].later = [RayActorError(error_msg="The actor died: out of memory"), None, None]
        with pytest.raises(WeightTransferError, match=r"^rollout actor 8 failed to take the weights: The actor died"):
            getattr(line, look)()


def test_a_wire_that_broke_nobody_knows_why_is_blamed_on_those_who_have_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = client(monkeypatch, {4: "taken", 9: None, 2: None})
    with pytest.raises(WeightTransferError, match=r"^rollout actor 9, 2 did not take the weights$") as caught:
        line.blame()
    assert caught.value.actors == (2, 9)


def test_a_wire_that_broke_before_anybody_was_asked_is_nobodys_fault() -> None:
    ActorsClient({}, 1, timeout_s=0.2).blame()


def test_those_who_answer_once_they_are_let_go_only_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    line = client(monkeypatch, {9: None, 4: "let go", 2: None})
    late = line.late("take the weights", [2, 4, 9])
    assert line.who_stays_late(late).actors == (2, 9)
    alone = line.late("take the weights", [4])
    assert line.who_stays_late(alone) is alone
    everybody = client(monkeypatch, {4: "let go", 2: "let go"})
    assert everybody.who_stays_late(late) is late


def test_answers_come_in_the_actors_order(monkeypatch: pytest.MonkeyPatch) -> None:
    line = client(monkeypatch, {4: "four", 2: "two"})
    line.end()
    assert list(map(str, line.received)) == ["four", "two"]


def test_an_engine_in_parts_has_several_places_in_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    line = client(monkeypatch, {4: "", 2: ""}, workers=2)
    assert [line.actor_of(rank) for rank in (1, 2, 3, 4)] == [4, 4, 2, 2]


def test_an_error_keeps_its_actors_on_its_way_between_processes() -> None:
    error = WeightTransferError("rollout actor 3, 1 received other bytes", [3, 1, 3])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.actors) == (WeightTransferError, str(error), (1, 3))
    assert WeightTransferError("the weight group broke").actors == ()


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

    monkeypatch.setattr(weight_source, "gathered_parameters", gathered)
    module = nn.Linear(2, 2)
    lasting = list(Zero3Source(module, torch.float32, lasting=True))
    assert [tensor.tolist() for _, tensor in lasting] == [[0, 0], [1, 1], [2, 2]]
    passing = list(Zero3Source(module, torch.float32))
    assert [tensor.tolist() for _, tensor in passing] == [[2, 2]] * 3
