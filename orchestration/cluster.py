"""Where a run lives: the Ray cluster it joins or starts, what it needs of it, and the handles of its actors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private import ray_constants
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.place import Place
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parent.parent
COMMON_ENV = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"), "TOKENIZERS_PARALLELISM": "false"}
# Two OpenMP threads on a busy machine spin on each other: small batches decode about 40 times slower.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
CPU_ENGINE_ENV = {
    **ONE_THREAD,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Only one function would be compiled, at the first request, for ten seconds; there is no gain on CPUs.
    "TORCHDYNAMO_DISABLE": "1",
}
END_S = 20.0  # for a worker of Ray to come up and kill a process
# What a run on this machine alone opens, it opens to this machine alone.
LOOPBACK = "127.0.0.1"
LOOPBACK_ENV = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": LOOPBACK}
QUIET_VLLM = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


class ClusterError(RuntimeError):
    """The cluster cannot be reached or cannot hold the run; says what is missing."""


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process: how many, and what each needs."""

    name: str
    count: int
    cpus: float
    gpus: float

    @property
    def bundle(self) -> dict[str, float]:
        return {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v > 0}


def roles(config: RunConfig) -> list[Role]:
    """The processes of a run that need room on the cluster. Driver and queue ride along on the head."""
    ranks = config.deepspeed
    return [Role("learner rank", ranks.ranks, ranks.cpus_per_rank, ranks.gpus_per_rank), actor_role(config)]


def actor_role(config: RunConfig) -> Role:
    """The processes that sample."""
    rollout = config.rollout
    gpus = rollout.gpus_per_actor * rollout.tensor_parallel
    return Role("rollout actor", rollout.actors, rollout.cpus_per_actor, gpus)


def placement_plan(config: RunConfig, needed: Sequence[Role] | None = None) -> list[str]:
    """The plan in words, one line a role and one for the sum. needed: the roles, by default those of a run."""
    needed = roles(config) if needed is None else needed
    lines = [f"{r.count} x {r.name}: {r.cpus:g} CPU, {r.gpus:g} GPU each" for r in needed]
    total = {k: sum(r.count * r.bundle.get(k, 0.0) for r in needed) for k in ("CPU", "GPU")}
    address = _address(config)
    where = f"the cluster at {address}" if address else f"this machine ({config.cluster.local_cpus} logical CPUs)"
    return [*lines, f"in all: {total['CPU']:g} CPU, {total['GPU']:g} GPU on {where}"]


def missing_resources(needed: Sequence[Role], nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """What the nodes lack, one phrase each: sums over the cluster first, then single processes larger than any node."""
    phrases = []
    for kind in ("CPU", "GPU"):
        wanted = sum(r.count * r.bundle.get(kind, 0.0) for r in needed)
        there = sum(n.get(kind, 0.0) for n in nodes)
        if wanted > there:
            parts = " + ".join(f"{r.count} {r.name} x {r.bundle[kind]:g}" for r in needed if kind in r.bundle)
            phrases.append(f"{wanted:g} {kind} needed ({parts}), {there:g} there")
    for role in needed:
        if not any(all(n.get(k, 0.0) >= v for k, v in role.bundle.items()) for n in nodes):
            phrases.append(f"no single node has {role.bundle} for a {role.name}")
    return phrases


def connect(config: RunConfig) -> str:
    """Join the cluster, or start Ray on this machine; returns the dashboard's address. Raises ClusterError."""
    address = _address(config)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    try:
        if address:
            _probe(address, config.cluster.placement_timeout_s)
            # A job's working directory is set by Ray; anything else brings this folder along.
            in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
            environment = None if in_job else {"working_dir": str(ROOT), "excludes": [".git", ".venv", "runs"]}
            context = ray.init(address=address, runtime_env=environment, **quiet)
        else:
            with _on_loopback():
                context = ray.init(
                    address="local",  # never a left-over of an earlier Ray
                    dashboard_host=LOOPBACK,
                    num_cpus=config.cluster.local_cpus,
                    include_dashboard=config.cluster.dashboard,
                    dashboard_port=config.cluster.dashboard_port,
                    object_store_memory=config.cluster.object_store_mib << 20,
                    runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cluster.address: cannot join Ray at {address or 'local'}: {cause_of(error)}") from error
    return str(context.dashboard_url or "")


def _address(config: RunConfig) -> str | None:
    """Of the cluster to join; None for a Ray of our own on this machine."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


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


def reserve(config: RunConfig, needed: Sequence[Role] | None = None) -> PlacementGroup:
    """Reserve room for all processes at once, or say what lacks: ClusterError within cluster.placement_timeout_s.

    needed: the roles, by default those of a run.
    """
    needed = roles(config) if needed is None else needed
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    lacking = missing_resources(needed, nodes)
    if lacking:
        raise ClusterError(f"the cluster cannot place this run: {'; '.join(lacking)}: {_advice(config)}")
    bundles = [r.bundle or {"CPU": 0.001} for r in needed for _ in range(r.count)]
    group = placement_group(bundles, strategy="PACK", name=f"sesa-{config.run.name or 'run'}")
    if not group.wait(config.cluster.placement_timeout_s):
        free = {k: round(v, 2) for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        remove_placement_group(group)
        raise ClusterError(
            f"no room within {config.cluster.placement_timeout_s:g} s (cluster.placement_timeout_s): "
            f"{'; '.join(placement_plan(config, needed))}; free now: {free or 'nothing'}: {_advice(config)}"
        )
    return group


def _advice(config: RunConfig) -> str:
    grow = "raise cluster.local_cpus" if _address(config) is None else "add nodes"
    return f"lower rollout.actors or deepspeed.ranks, or {grow}"


def spawn(
    cls: type,
    role: Role,
    first_bundle: int,
    group: PlacementGroup,
    env: Mapping[str, str],
    arguments: Sequence[Sequence[Any]],
    *,
    restarts: bool = False,
    life: int = 0,
    first: int = 0,
) -> list[ActorHandle]:
    """One named actor a bundle; arguments: one list a process. restarts: Ray starts one that has died again.

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
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=first_bundle + i),
            runtime_env={"env_vars": dict(env)},
        ).remote(*own)
        for i, own in enumerate(arguments)
    ]


def end(actors: Sequence[ActorHandle], room: PlacementGroup | None = None) -> None:
    """End these processes; their room is free for others. room: a placement group of their own."""
    for actor in actors:
        ray.kill(actor)
    if room is not None:
        remove_placement_group(room)


def is_placed(room: PlacementGroup) -> bool:
    """Whether the cluster has found a place for it."""
    return bool(room.wait(0))


def reserve_one(role: Role) -> PlacementGroup | None:
    """Room for one more process of this kind; None where no node has it now."""
    bundle = role.bundle or {"CPU": 0.001}
    free = ray.available_resources()  # of the whole cluster: the placement group waits for a single node to have it
    if any(free.get(kind, 0.0) < amount for kind, amount in bundle.items()):
        return None
    return placement_group([bundle], strategy="PACK")


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
    """Kill a process of this machine, if it is still the one that began then (seconds since 1970)."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() == began:
            process.kill()


def engine_env(config: RunConfig) -> dict[str, str]:
    on_gpu = config.rollout.gpus_per_actor > 0
    return {**COMMON_ENV, **QUIET_VLLM, **_network_env(config, on_gpu), **({} if on_gpu else CPU_ENGINE_ENV)}


def learner_env(config: RunConfig) -> dict[str, str]:
    on_gpu = config.deepspeed.gpus_per_rank > 0
    return {**COMMON_ENV, **QUIET_VLLM, **_network_env(config, on_gpu), **({} if on_gpu else ONE_THREAD)}


def _network_env(config: RunConfig, on_gpu: bool) -> dict[str, str]:
    return {} if on_gpu or _address(config) is not None else LOOPBACK_ENV


def _probe(address: str, timeout_s: float) -> None:
    """Ray itself waits for minutes on an address that answers nothing, or ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
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
