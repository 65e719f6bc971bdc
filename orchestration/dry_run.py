"""What a run would take and where it would come, without starting any of it."""

from __future__ import annotations

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray.exceptions import RayError

from configs.schema import RunConfig
from orchestration.cluster import cause_of, connect
from orchestration.placement import Node, place, plan_in_words
from orchestration.room import ClusterError, address_of, cluster_nodes, placement_plan, roles


def placement_lines(config: RunConfig) -> list[str]:
    """What every role takes and the driver, then node by node who would come there.

    The nodes are those of the cluster as it is now, or this machine. Raises ClusterError where no cluster answers.
    """
    needed = roles(config)
    return [*placement_plan(config, needed), _of_driver(config), *plan_in_words(place(needed, _nodes(config)))]


def _of_driver(config: RunConfig) -> str:
    """Ray is asked for nothing, so no node is too full for them."""
    where = "on this machine"
    if address_of(config) is not None:
        where = "on the node where the run is started, of a Ray job the head"
    return (
        f"1 x driver with the replay queue: 0 CPU, 0 GPU, up to {config.queue.max_mib} MiB of groups (queue.max_mib), "
        f"{where}"
    )


def _nodes(config: RunConfig) -> list[Node]:
    if address_of(config) is None:
        manager = NvidiaGPUAcceleratorManager
        gpus, visible = (
            manager.get_current_node_num_accelerators(),
            manager.get_current_process_visible_accelerator_ids(),
        )
        if visible is not None:  # CUDA_VISIBLE_DEVICES
            gpus = min(gpus, len(visible))
        there = {"CPU": float(config.cluster.local_cpus), "GPU": float(gpus)}
        return [Node("this machine", there, there)]
    connect(config)
    try:
        return cluster_nodes()
    except RayError as error:
        raise ClusterError(
            f"the cluster at {address_of(config)} does not say what it has: {cause_of(error)}"
        ) from error
    finally:
        ray.shutdown()
