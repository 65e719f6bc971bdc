"""Where a run lives: the Ray cluster it joins or starts, and the processes it starts and ends there."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private import ray_constants
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.place import Place
from configs.schema import RunConfig
from configs.watchdog import TELL
from orchestration.grafana import UID
from orchestration.room import ClusterError, Role, Room, address_of, give_back

ROOT = Path(__file__).resolve().parent.parent
COMMON_ENV = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"), "TOKENIZERS_PARALLELISM": "false"}
# Two OpenMP threads on a busy machine spin on each other: small batches decode about 40 times slower.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# The C library gives freed memory of many sizes back in pieces too small for what is asked for next: engines grew by
# 400 MiB an hour. The allocator that comes with Ray does not (docs/engineering.md). An engine asks for the same sizes
# again and again: what is freed is kept. A rank's vary: kept pieces are not put together, so they are given back.
_ALLOCATOR = Path(ray.__file__).parent / "core" / "libjemalloc.so"
KEEPS, GIVES_BACK = "narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1", "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0"


def _allocator(settings: str) -> dict[str, str]:
    """Where there is one, and the environment names no other."""
    if not _ALLOCATOR.exists() or "LD_PRELOAD" in os.environ:
        return {}
    return {"LD_PRELOAD": str(_ALLOCATOR), "MALLOC_CONF": settings}


CPU_ENGINE_ENV = {
    **ONE_THREAD,
    **_allocator(KEEPS),
    # oneDNN keeps 1,024 kernels, one for each shape of a matrix product, and each number of tokens in a step is another
    # shape: engines grew by hundreds of MiB until it was full. As many as a few steps need are as fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Only one function would be compiled, at the first request, for ten seconds; there is no gain on CPUs.
    "TORCHDYNAMO_DISABLE": "1",
}
# Ray's own limit of 1,000 is too low for the queue: behind as many groups that wait for room in it, the call that makes
# room would never begin.
CALLS_AT_ONCE = 1_000_000
TASKS_LISTED = 10_000
TELLING_S = 0.2  # a process takes milliseconds for its stacks
END_S = 20.0  # for a worker of Ray to come up and kill a process
# What a run on this machine alone opens, it opens to this machine alone.
LOOPBACK = "127.0.0.1"
LOOPBACK_ENV = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": LOOPBACK}
QUIET_VLLM = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


def connect(config: RunConfig) -> str:
    """Join the cluster, or start Ray on this machine; returns the dashboard's address. Raises ClusterError."""
    address = address_of(config)
    quiet: dict[str, Any] = {
        "log_to_driver": False, "logging_level": "error", "configure_logging": True,
        "job_config": JobConfig(metadata=_told(config)),
    }  # fmt: skip
    try:
        if address:
            _probe(address, config.cluster.placement_timeout_s)
            # A job's working directory is set by Ray; anything else brings this folder along.
            in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
            environment = None if in_job else {"working_dir": str(ROOT), "excludes": [".git", ".venv", "runs"]}
            context = ray.init(address=address, runtime_env=environment, **quiet)
        else:
            # Its page Metrics shows our dashboard where it would show that of Ray Data, which no run uses.
            os.environ.setdefault("RAY_GRAFANA_DATA_DASHBOARD_UID", UID)
            with _on_loopback():
                context = ray.init(
                    address="local",  # never a left-over of an earlier Ray
                    dashboard_host=LOOPBACK,
                    num_cpus=config.cluster.local_cpus,
                    include_dashboard=config.cluster.dashboard,
                    dashboard_port=config.cluster.dashboard_port,
                    object_store_memory=config.cluster.object_store_mib << 20,
                    runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                    # What Ray keeps for its list of tasks: 3 KiB each, 330 MiB of the 100,000 that are its default.
                    _system_config={"task_events_max_num_task_in_gcs": TASKS_LISTED},
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"cluster.address: cannot join Ray at {address or 'local'}: {cause_of(error)}") from error
    return str(context.dashboard_url or "")


def _told(config: RunConfig) -> dict[str, str]:
    """What the dashboard's list of jobs says of a run."""
    return {"run": config.run.name or "", "env": config.env.name, "sampler": config.sampler.name}


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have the Ray that is started meanwhile listen on this machine alone.

    It takes the node's own address else, even where it is told another one, and its ports take any code.
    """
    # What Ray does on systems on which it makes no clusters: read when ray is imported, and by the processes it starts.
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    variable = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if variable is not None:
            os.environ[name] = variable


def spawn(
    cls: type,
    role: Role,
    rooms: Sequence[Room],
    env: Mapping[str, str],
    arguments: Sequence[Sequence[Any]],
    *,
    restarts: bool = False,
    life: int = 0,
    first: int = 0,
) -> list[ActorHandle]:
    """One named actor a room; arguments: one list a process. restarts: Ray starts one that has died again.

    life: how often such processes were started before, as names must differ. first: number of the first of them.

    A call is made once, whatever becomes of its process: what it did until then is not known.
    """
    remote: Any = ray.remote(cls)
    return [
        remote.options(
            name=f"{role.name} {first + i} ({os.getpid()}{f', start {life + 1}' if life else ''})",
            num_cpus=role.cpus,
            num_gpus=role.gpus,
            max_restarts=-1 if restarts else 0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(room.group, placement_group_bundle_index=room.bundle),
            runtime_env={"env_vars": dict(env)},
        ).remote(*own)
        for i, (room, own) in enumerate(zip(rooms, arguments, strict=True))
    ]


def spawn_beside_driver(cls: type, name: str, *arguments: Any) -> ActorHandle:
    """A small actor on the driver's node: no other node's loss can take it away. Ray starts one that has died again.

    It begins every call as it comes, however many others wait in it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(cls)
    handle: ActorHandle = remote.options(
        name=name, num_cpus=0, max_restarts=-1, max_concurrency=CALLS_AT_ONCE, scheduling_strategy=here
    ).remote(*arguments)
    return handle


def end(actors: Sequence[ActorHandle], rooms: Sequence[Room] = ()) -> None:
    """End these processes, and give back these rooms."""
    for actor in actors:
        ray.kill(actor)
    give_back(rooms)


async def end_process(handle: ActorHandle, place: Place) -> None:
    """End an actor's process, even one that no longer answers. Waits END_S at most. Ray may start the actor again."""
    with suppress(RayError):
        ray.kill(handle, no_restart=False)
    # That is a message to the process, which one that is stopped or stuck does not read.
    killer: Any = ray.remote(kill_process)
    here = NodeAffinitySchedulingStrategy(place.node, soft=False)
    with suppress(RayError, TimeoutError):
        async with asyncio.timeout(END_S):
            await killer.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(place.pid, place.began)


def kill_process(pid: int, began: float) -> None:
    """Kill a process of this machine, if it is still the one that began then (seconds since 1970).

    One that looks after itself leaves its stacks before.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() == began:
            process.send_signal(TELL)
            time.sleep(TELLING_S)
            process.kill()


def engine_env(config: RunConfig) -> dict[str, str]:
    on_gpu = config.rollout.gpus_per_actor > 0
    return {**COMMON_ENV, **QUIET_VLLM, **_network_env(config, on_gpu), **({} if on_gpu else CPU_ENGINE_ENV)}


def learner_env(config: RunConfig) -> dict[str, str]:
    on_gpu = config.deepspeed.gpus_per_rank > 0
    return {
        **COMMON_ENV,
        **QUIET_VLLM,
        **_network_env(config, on_gpu),
        **({} if on_gpu else ONE_THREAD | _allocator(GIVES_BACK)),
    }


def _network_env(config: RunConfig, on_gpu: bool) -> dict[str, str]:
    return {} if on_gpu or address_of(config) is not None else LOOPBACK_ENV


def _probe(address: str, timeout_s: float) -> None:
    """Ray itself waits for minutes on an address that answers nothing, or ends the process."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto" and the like: Ray finds the address by itself
        return
    # A listening port is not enough: what answers must speak gRPC, as Ray's head does.
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            raise ConnectionError(
                f"nothing answers there within {timeout_s:g} s (cluster.placement_timeout_s)"
            ) from None


def cause_of(error: BaseException) -> str:
    """The one line that says what went wrong: Ray puts a remote traceback into its errors and the cause last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if isinstance(error, RayError) else 0] if lines else type(error).__name__
