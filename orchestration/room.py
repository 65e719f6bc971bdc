"""What the processes of a run need of a cluster, and the room that is reserved for them there.

Every rollout actor has a placement group of its own: the room of one that leaves, or whose node is lost, is given back
without the others'. The learner's ranks share one.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from configs.schema import RunConfig

# A part of the room is held so long at most while the rest is waited for: two runs that each hold what the other one
# lacks would wait for ever.
HOLD_S = 10.0
LOOK_S = 0.1
AGAIN_S = (0.5, 5.0)  # between two tries, drawn anew each time


class ClusterError(RuntimeError):
    """The cluster cannot be reached or cannot hold the run; says what is missing."""


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process: how many, and what each needs. together: they have one placement group."""

    name: str
    count: int
    cpus: float
    gpus: float
    together: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        return {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v > 0}


@dataclass(frozen=True, slots=True)
class Room:
    """Where one process is placed: a bundle of a placement group."""

    group: PlacementGroup
    bundle: int = 0


def roles(config: RunConfig) -> list[Role]:
    """The processes of a run that need room on the cluster. Driver and queue ride along on the head."""
    ranks = config.deepspeed
    learner = Role("learner rank", ranks.ranks, ranks.cpus_per_rank, ranks.gpus_per_rank, together=True)
    return [learner, actor_role(config)]


def actor_role(config: RunConfig) -> Role:
    """The processes that sample."""
    rollout = config.rollout
    gpus = rollout.gpus_per_actor * rollout.tensor_parallel
    return Role("rollout actor", rollout.actors, rollout.cpus_per_actor, gpus)


def address_of(config: RunConfig) -> str | None:
    """Of the cluster to join; None for a Ray of our own on this machine."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def placement_plan(config: RunConfig, needed: Sequence[Role] | None = None) -> list[str]:
    """The plan in words, one line a role and one for the sum. needed: the roles, by default those of a run."""
    needed = roles(config) if needed is None else needed
    lines = [f"{r.count} x {r.name}: {r.cpus:g} CPU, {r.gpus:g} GPU each" for r in needed]
    total = {k: sum(r.count * r.bundle.get(k, 0.0) for r in needed) for k in ("CPU", "GPU")}
    address = address_of(config)
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


def reserve(config: RunConfig, needed: Sequence[Role] | None = None) -> list[list[Room]]:
    """Reserve room for all processes, or say what lacks: ClusterError within cluster.placement_timeout_s.

    needed: the roles, by default those of a run. Returns the rooms of each role.
    """
    needed = roles(config) if needed is None else needed
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    lacking = missing_resources(needed, nodes)
    if lacking:
        raise ClusterError(f"the cluster cannot place this run: {'; '.join(lacking)}: {_advice(config)}")
    until = time.monotonic() + config.cluster.placement_timeout_s
    while True:
        free = {k: round(v, 2) for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        rooms = [_asked_for(role, config.run.name) for role in needed]
        groups = [room.group for of_role in rooms for room in of_role]
        if _all_placed(groups, until):
            return rooms
        for of_role in rooms:
            give_back(of_role)
        if time.monotonic() >= until:
            break
        time.sleep(min(random.uniform(*AGAIN_S), max(0.0, until - time.monotonic())))
    raise ClusterError(
        f"no room within {config.cluster.placement_timeout_s:g} s (cluster.placement_timeout_s): "
        f"{'; '.join(placement_plan(config, needed))}; free now: {free or 'nothing'}: {_advice(config)}"
    )


def reserve_one(role: Role) -> Room | None:
    """Room for one more process of this kind; None where no node has it now."""
    free = ray.available_resources()  # of the whole cluster: the placement group waits for a single node to have it
    if any(free.get(kind, 0.0) < amount for kind, amount in role.bundle.items()):
        return None
    return Room(placement_group([_bundle(role)], strategy="PACK"))


def give_back(rooms: Iterable[Room]) -> None:
    """What is still in them is ended."""
    for group in {room.group.id: room.group for room in rooms}.values():
        remove_placement_group(group)


def is_placed(room: Room) -> bool:
    """Whether the cluster has a place for it."""
    return _state(room.group) == "CREATED"


def is_lost(room: Room) -> bool:
    """Whether the node it was on is gone, and the cluster has no other place for it."""
    return _state(room.group) == "RESCHEDULING"


def _state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def _asked_for(role: Role, run: str | None) -> list[Room]:
    """Rooms that the cluster has still to place."""
    name, bundle = f"sesa-{run or 'run'} {role.name}", _bundle(role)
    if role.together:
        group = placement_group([bundle] * role.count, strategy="PACK", name=name)
        return [Room(group, i) for i in range(role.count)]
    return [Room(placement_group([bundle], strategy="PACK", name=f"{name} {i}")) for i in range(role.count)]


def _bundle(role: Role) -> dict[str, float]:
    return role.bundle or {"CPU": 0.001}


def _all_placed(groups: Sequence[PlacementGroup], until: float) -> bool:
    """Wait for all. False at `until` (`time.monotonic()`), or when only some of them have been placed for HOLD_S."""
    held_since: float | None = None
    while True:
        placed, now = [_state(group) == "CREATED" for group in groups], time.monotonic()
        if all(placed):
            return True
        held_since = (held_since or now) if any(placed) else None
        if now >= until or (held_since is not None and now - held_since > HOLD_S):
            return False
        time.sleep(LOOK_S)


def _advice(config: RunConfig) -> str:
    grow = "raise cluster.local_cpus" if address_of(config) is None else "add nodes"
    return f"lower rollout.actors or deepspeed.ranks, or {grow}"
