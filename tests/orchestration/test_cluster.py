"""What a run needs of a cluster and what lacks, in words; no Ray is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pydantic import ValidationError
from ray.exceptions import AuthenticationError, RayError, RaySystemError, RpcError
from ray.util import get_node_ip_address

from configs.schema import RunConfig
from configs.shown import is_secret_name
from orchestration import cluster
from orchestration.cluster import cause_of, connect, engine_env, learner_env
from orchestration.placement import Role
from orchestration.room import ClusterError, address_of, of_ranks_and_actors, placement_plan, roles

LEARNERS, ACTORS = Role("learner rank", 2, 1.0, 0.0, together=True), Role("rollout actor", 3, 0.5, 0.0)


def configured(**groups: Any) -> RunConfig:
    return RunConfig.model_validate(groups)


GPUS = configured(
    rollout={"actors": 4, "gpus_per_actor": 1, "tensor_parallel": 2, "cpus_per_actor": 3},
    deepspeed={"ranks": 8, "gpus_per_rank": 1},
    cluster={"address": "head:6379"},
)


def test_the_roles_of_a_run() -> None:
    config = configured(rollout={"actors": 3, "cpus_per_actor": 0.5}, deepspeed={"ranks": 2})
    assert roles(config) == [LEARNERS, ACTORS]
    assert [role.bundle for role in roles(config)] == [{"CPU": 1.0}, {"CPU": 0.5}]


def test_an_engine_in_parts_needs_a_gpu_for_each() -> None:
    ranks, actors = roles(GPUS)
    assert (ranks.count, ranks.bundle) == (8, {"CPU": 1.0, "GPU": 1.0})
    assert (actors.count, actors.bundle) == (4, {"CPU": 3.0, "GPU": 2.0})


def test_a_rank_and_an_engine_that_share_a_gpu_share_a_bundle() -> None:
    config = configured(
        rollout={"actors": 2, "gpus_per_actor": 0.5, "cpus_per_actor": 3, "node_resources": {"fast": 1}},
        deepspeed={"ranks": 2, "gpus_per_rank": 0.5, "node_resources": {"fast": 1, "wide": 2}},
        cluster={"colocated": True},
    )
    [pair] = roles(config)
    assert (pair.count, pair.together) == (2, True)
    assert pair.bundle == {"CPU": 4.0, "GPU": 1.0, "fast": 2.0, "wide": 2.0}
    rooms: list[Any] = [["a", "b"]]
    assert of_ranks_and_actors(rooms) == (rooms[0], rooms[0])
    assert of_ranks_and_actors([*rooms, []]) == (rooms[0], [])


def test_on_cpus_those_that_take_turns_have_rooms_of_their_own() -> None:
    config = configured(rollout={"actors": 3, "cpus_per_actor": 0.5}, cluster={"colocated": True})
    assert roles(config) == [LEARNERS, ACTORS]


def test_a_role_that_needs_nothing_has_an_empty_bundle() -> None:
    assert Role("x", 1, 0.0, 0.0).bundle == {}


def test_the_plan_in_words() -> None:
    config = configured(rollout={"actors": 3, "cpus_per_actor": 0.5}, deepspeed={"ranks": 2}, cluster={"local_cpus": 5})
    assert placement_plan(config) == [
        "2 x learner rank: 1 CPU, 0 GPU each",
        "3 x rollout actor: 0.5 CPU, 0 GPU each",
        "in all: 3.5 CPU, 0 GPU on this machine (5 logical CPUs)",
    ]
    assert placement_plan(GPUS) == [
        "8 x learner rank: 1 CPU, 1 GPU each",
        "4 x rollout actor: 3 CPU, 2 GPU each",
        "in all: 20 CPU, 16 GPU on the cluster at head:6379",
    ]
    asked = configured(rollout={"actors": 1, "node_labels": {"zone": "a"}, "node_resources": {"fast": 2}})
    assert placement_plan(asked)[1] == "1 x rollout actor: 1 CPU, 0 GPU, 2 fast each on a node with {'zone': 'a'}"


def test_an_address_that_nothing_answers_at_is_named_in_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            ClusterError, match=r"cluster\.address: cannot join Ray at .*nothing answers there"
        ) as caught:
            connect(configured(cluster={"address": address, "placement_timeout_s": 0.2}))
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()


CLIENT = "ray://head:10001"


def test_ray_client_is_refused_where_it_is_configured() -> None:
    with pytest.raises(ValidationError, match=r"ray://head:10001 is an address of Ray Client") as caught:
        configured(cluster={"address": CLIENT})
    assert "ray job submit --address http://HEAD:8265" in str(caught.value)


@pytest.mark.parametrize("step", [address_of, connect, placement_plan, engine_env])
def test_ray_client_is_refused_in_the_environment_before_anything_starts(
    step: Callable[[RunConfig], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLIENT)
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: ray://head:10001 is an address of Ray Client") as caught:
        step(configured())
    assert "\n" not in str(caught.value)
    # What the configuration says counts before it.
    assert address_of(configured(cluster={"address": "head:6379"})) == "head:6379"


@pytest.mark.parametrize("error", [AuthenticationError("no token"), RaySystemError("bad"), RpcError("bad", 14)])
def test_what_ray_says_of_a_cluster_it_does_not_join_is_one_line(
    error: RayError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_probe", lambda *_: None)
    with pytest.raises(ClusterError, match=r"^cluster\.address: cannot join Ray at head:6379: .+") as caught:
        connect(configured(cluster={"address": "head:6379"}))
    assert "\n" not in str(caught.value)


def test_cpu_processes_run_on_one_thread_and_gpu_ones_as_they_like() -> None:
    cpu = configured()
    assert engine_env(cpu)["OMP_NUM_THREADS"] == learner_env(cpu)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in engine_env(GPUS) | learner_env(GPUS)
    assert engine_env(GPUS)["VLLM_NO_USAGE_STATS"] == "1"


# --- who can reach it ------------------------------------------------------------------------------------------------


NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def started(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray is asked for, without starting it; and what it would take for the node's address then."""
    asked: list[dict[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        seen = {"node": get_node_ip_address(), "variable": os.environ.get(NO_CLUSTER)}
        asked.append(settings | seen)
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_probe", lambda *_: None)
    connect(config)
    return asked[0]


@pytest.mark.parametrize("before", [None, "1"])
def test_a_ray_of_our_own_listens_on_loopback(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(NO_CLUSTER, raising=False)
    if before is not None:
        monkeypatch.setenv(NO_CLUSTER, before)
    address = get_node_ip_address()
    asked = started(configured(), monkeypatch)
    assert (asked["address"], asked["dashboard_host"]) == ("local", "127.0.0.1")
    assert asked["_system_config"] == {"task_events_max_num_task_in_gcs": 10_000}  # else Ray's memory grows for long
    assert (asked["node"], asked["variable"]) == ("127.0.0.1", "0")
    assert (get_node_ip_address(), os.environ.get(NO_CLUSTER)) == (address, before)
    for variables in (engine_env(configured()), learner_env(configured())):
        assert variables["GLOO_SOCKET_IFNAME"] == "lo"
        assert variables["VLLM_HOST_IP"] == "127.0.0.1"


@pytest.mark.parametrize("where", ["config", "environment"])
def test_a_cluster_is_met_where_it_is(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = configured(cluster={"address": "10.0.0.1:6379"}) if where == "config" else configured()
    if where == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    asked = started(config, monkeypatch)
    assert (asked["address"], asked["variable"], asked["node"]) == ("10.0.0.1:6379", None, get_node_ip_address())
    assert not {"GLOO_SOCKET_IFNAME", "VLLM_HOST_IP"} & (engine_env(config) | learner_env(config)).keys()


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_no_secret_is_handed_to_ray(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a runtime environment is shown by the dashboard."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret-s3cret")
    config = configured(cluster={"address": address})
    handed = [started(config, monkeypatch), engine_env(config), learner_env(config)]
    assert "s3cret" not in str(handed)
    assert not any(is_secret_name(name) for variables in handed[1:] for name in variables)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RayError("a remote traceback\n  File x\nValueError: the cause\n\n"), "ValueError: the cause"),
        (ValueError("what went wrong\nand a long story"), "what went wrong"),
        (ValueError("  \n"), "ValueError"),
        (RayError(), "RayError"),
    ],
)
def test_the_cause_of_an_error_is_one_line(error: BaseException, expected: str) -> None:
    assert cause_of(error) == expected
