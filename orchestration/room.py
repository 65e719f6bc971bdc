"""What the processes of a run need of a cluster, and the room that is reserved for them there.

Every rollout actor has a placement group of its own: the room of one that leaves, or whose node is lost, is given back
without the others'. The learner's ranks share one. Where a rank and an actor are on one GPU, they are in one bundle.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from configs.addresses import check_address
from configs.schema import RunConfig
from orchestration.placement import Node, Role, lacking, place

# A part of the room is held so long at most while the rest is waited for: two runs that each hold what the other one
# lacks would wait for ever.
HOLD_S = 10.0
LOOK_S = 0.1
SOON_S = 1.0  # within which Ray places what there is room for
AGAIN_S = (0.5, 5.0)  # between two tries, drawn anew each time


class ClusterError(RuntimeError):
    """The cluster cannot be reached or cannot hold the run; says what is missing."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where one process is placed: a bundle of a placement group."""

    group: PlacementGroup
    bundle: int = 0


def roles(config: RunConfig) -> list[Role]:
    """What of a run needs room on the cluster. Driver and queue ride along on the head."""
    ranks, actors = learner_role(config), actor_role(config)
    if not config.shares_gpus:
        return [ranks, actors]
    resources = {
        kind: ranks.resources.get(kind, 0.0) + actors.resources.get(kind, 0.0)
        for kind in {**ranks.resources, **actors.resources}
    }
    return [
        Role(
            "learner rank with a rollout actor", ranks.count, ranks.cpus + actors.cpus, ranks.gpus + actors.gpus,
            together=True, resources=resources, labels=ranks.labels,
        )
    ]  # fmt: skip


def of_ranks_and_actors(rooms: Sequence[Sequence[Room]]) -> tuple[Sequence[Room], Sequence[Room]]:
    """The rooms of `roles` by kind of process; of those that share GPUs they are the same."""
    return rooms[0], rooms[-1]


def learner_role(config: RunConfig) -> Role:
    """The processes that learn."""
    ranks = config.deepspeed
    return Role(
        "learner rank", ranks.ranks, ranks.cpus_per_rank, ranks.gpus_per_rank, together=True,
        resources=ranks.node_resources, labels=ranks.node_labels,
    )  # fmt: skip


def actor_role(config: RunConfig) -> Role:
    """The processes that sample."""
    rollout = config.rollout
    gpus = rollout.gpus_per_actor * rollout.tensor_parallel
    return Role(
        "rollout actor", rollout.actors, rollout.cpus_per_actor, gpus,
        resources=rollout.node_resources, labels=rollout.node_labels,
    )  # fmt: skip


def address_of(config: RunConfig) -> str | None:
    """Of the cluster to join; None for a Ray of our own on this machine. Raises ClusterError for one of Ray Client."""
    if config.cluster.address:
        return config.cluster.address
    try:
        return check_address(os.environ.get("RAY_ADDRESS", "")) or None
    except ValueError as error:
        raise ClusterError(f"RAY_ADDRESS: {error}") from error


def placement_plan(config: RunConfig, needed: Sequence[Role] | None = None) -> list[str]:
    """The plan in words, one line a role and one for the sum. needed: the roles, by default those of a run."""
    needed = roles(config) if needed is None else needed
    lines = [f"{r.count} x {r.name}: {_each(r)}" for r in needed]
    total = {k: sum(r.count * r.bundle.get(k, 0.0) for r in needed) for k in ("CPU", "GPU")}
    address = address_of(config)
    where = f"the cluster at {address}" if address else f"this machine ({config.cluster.local_cpus} logical CPUs)"
    return [*lines, f"in all: {total['CPU']:g} CPU, {total['GPU']:g} GPU on {where}"]


def cluster_nodes() -> list[Node]:
    """Of the Ray that was joined, by address."""
    free = available_resources_per_node()
    return [
        Node(n["NodeManagerAddress"], n["Resources"], free.get(n["NodeID"], {}), n["Labels"])
        for n in ray.nodes()
        if n["Alive"]
    ]


def reserve(config: RunConfig, needed: Sequence[Role] | None = None) -> list[list[Room]]:
    """Reserve room for all processes, or say what lacks: ClusterError within cluster.placement_timeout_s.

    needed: the roles, by default those of a run. Returns the rooms of each role.
    """
    needed = roles(config) if needed is None else needed
    before = cluster_nodes()
    if (missing := lacking(needed, before)) and not config.cluster.grows:
        raise ClusterError(f"the cluster cannot place this run: {'; '.join(missing)}: {_advice(config, missing)}")
    until = time.monotonic() + config.cluster.placement_timeout_s
    # What is given back is no longer asked for, and an autoscaler that has begun to start a node would think again.
    hold_s = math.inf if config.cluster.grows else HOLD_S
    while True:
        rooms = [_asked_for(role, config.run.name) for role in needed]
        groups = [room.group for of_role in rooms for room in of_role]
        if _all_placed(groups, until, hold_s):
            return rooms
        for of_role in rooms:
            give_back(of_role)
        if time.monotonic() >= until:
            break
        time.sleep(min(random.uniform(*AGAIN_S), max(0.0, until - time.monotonic())))
    after = cluster_nodes()
    kinds = {kind for role in needed for kind in role.bundle}
    free = {k: round(v, 2) for k, v in ray.available_resources().items() if k in kinds}
    limit = f"{config.cluster.placement_timeout_s:g} s (cluster.placement_timeout_s){_changes(before, after)}"
    if missing := lacking(needed, after):
        raise ClusterError(
            f"the cluster is too small for this run within {limit}: {'; '.join(missing)}: {_advice(config, missing)}"
        )
    raise ClusterError(
        f"no room within {limit}: {'; '.join(placement_plan(config, needed))}; free now: {free or 'nothing'}: "
        f"{_advice(config)}"
    )


class NewRooms:
    """Rooms for more processes of a kind while a run goes on. grows: what lacks is asked for, for an autoscaler."""

    def __init__(self, role: Role, *, grows: bool = False) -> None:
        self._role, self._grows = replace(role, count=1), grows
        self._asked: Room | None = None

    def next(self) -> Room | None:
        """Room for one more, placed; None where the cluster has none now."""
        until = time.monotonic()
        if self._asked is None:
            fits = not place([self._role], cluster_nodes()).without
            if not (fits or self._grows):
                return None
            self._asked = Room(_group(self._role, 1))
            until += SOON_S * fits
        if _all_placed([self._asked.group], until, math.inf):
            found, self._asked = self._asked, None
            return found
        if not self._grows:  # somebody else was faster
            self.forget()
        return None

    def forget(self) -> None:
        """What was asked for is not needed any more."""
        if self._asked is not None:
            give_back([self._asked])
            self._asked = None


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
    name = f"sesa-{run or 'run'} {role.name}"
    if role.together:
        group = _group(role, role.count, name)
        return [Room(group, i) for i in range(role.count)]
    return [Room(_group(role, 1, f"{name} {i}")) for i in range(role.count)]


def _group(role: Role, count: int, name: str = "") -> PlacementGroup:
    labels = [dict(role.labels)] * count if role.labels else None
    try:
        return placement_group([_bundle(role)] * count, strategy="PACK", name=name, bundle_label_selector=labels)
    except ValueError as error:
        raise ClusterError(f"Ray takes no such room for a {role.name}: {error}") from error


def _bundle(role: Role) -> dict[str, float]:
    return role.bundle or {"CPU": 0.001}


def _all_placed(groups: Sequence[PlacementGroup], until: float, hold_s: float) -> bool:
    """Wait for all. False at `until` (`time.monotonic()`), or when only some of them have been placed for hold_s."""
    held_since: float | None = None
    while True:
        placed, now = [_state(group) == "CREATED" for group in groups], time.monotonic()
        if all(placed):
            return True
        held_since = (held_since or now) if any(placed) else None
        if now >= until or (held_since is not None and now - held_since > hold_s):
            return False
        time.sleep(LOOK_S)


def _each(role: Role) -> str:
    beyond = [f"{amount:g} {kind}" for kind, amount in role.resources.items()]
    labels = f" on a node with {dict(role.labels)}" if role.labels else ""
    return ", ".join([f"{role.cpus:g} CPU", f"{role.gpus:g} GPU", *beyond]) + " each" + labels


def _changes(before: Sequence[Node], after: Sequence[Node]) -> str:
    """What became of the cluster meanwhile."""
    names, now = {node.name for node in before}, {node.name for node in after}
    words = [(len(now - names), "joined"), (len(names - now), "left")]
    said = " and ".join(f"{count} node{'s' if count > 1 else ''} {what}" for count, what in words if count)
    return f", in which {said}" if said else ""


def _advice(config: RunConfig, missing: Sequence[str] = ()) -> str:
    if address_of(config) is not None:
        grow = "add nodes" if config.cluster.grows else "add nodes (cluster.grows=true where an autoscaler does)"
    elif all("'" not in phrase and " CPU needed" in phrase for phrase in missing):
        grow = "raise cluster.local_cpus"
    else:
        grow = "join a cluster that has it (cluster.address)"
    return f"lower rollout.actors or deepspeed.ranks, or {grow}"
