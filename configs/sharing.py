"""Which processes may be on one GPU: an engine and a learner rank, exactly where cluster.colocated says so.

NCCL takes no two processes on one GPU, and it joins the ranks, and the engines with rank 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import RunConfig


def check_sharing(config: RunConfig) -> None:
    """Raises ValueError, which names the keys."""
    rollout, ranks = config.rollout, config.deepspeed
    asked = f"rollout.gpus_per_actor ({rollout.gpus_per_actor:g}) and deepspeed.gpus_per_rank "
    asked += f"({ranks.gpus_per_rank:g})"
    together = rollout.gpus_per_actor + ranks.gpus_per_rank
    if not config.cluster.colocated:
        if 0 < together <= 1:
            raise ValueError(
                f"{asked} let an engine and a learner rank be on one GPU at once: give each a whole one, or set "
                "cluster.colocated"
            )
        _check_apart(config)
        return
    if together == 0:  # on CPUs they share the cores
        return
    if together != 1:
        raise ValueError(f"cluster.colocated: {asked} must be one GPU together, for instance 0.5 each")
    engines = rollout.actors * rollout.tensor_parallel
    if ranks.ranks != engines:
        raise ValueError(
            f"cluster.colocated: deepspeed.ranks ({ranks.ranks}) must be rollout.actors ({rollout.actors}) times "
            f"rollout.tensor_parallel ({rollout.tensor_parallel}): a rank and a part of an engine on each GPU"
        )
    if rollout.max_actors is not None and rollout.max_actors > rollout.actors:
        raise ValueError(
            f"cluster.colocated: rollout.max_actors ({rollout.max_actors}) must not be above rollout.actors "
            f"({rollout.actors}): every engine is on the GPU of a learner rank"
        )
    if config.sync.backend == "nccl":
        raise ValueError(
            "cluster.colocated: sync.backend is nccl, which takes no two processes on one GPU: set auto or gloo"
        )
    if rollout.node_labels != ranks.node_labels:
        raise ValueError(
            f"cluster.colocated: rollout.node_labels ({rollout.node_labels}) and deepspeed.node_labels "
            f"({ranks.node_labels}) must be the same: an engine and its rank are on one node"
        )


def need_whole_gpus(config: RunConfig, actors: int) -> bool:
    """Whether so many engines have to have GPUs of their own and ask for less.

    NCCL joins no two on one, and over gloo either would take what the other one needs for its own while both start.
    """
    apart = not config.cluster.colocated
    return apart and actors > 1 and 0 < config.rollout.gpus_per_actor < 1


def _check_apart(config: RunConfig) -> None:
    """Of ranks among themselves, and of engines. Raises ValueError."""
    rollout, ranks = config.rollout, config.deepspeed
    if ranks.ranks > 1 and 0 < ranks.gpus_per_rank < 1:
        raise ValueError(
            f"deepspeed.ranks ({ranks.ranks}) with deepspeed.gpus_per_rank ({ranks.gpus_per_rank:g}): NCCL takes no "
            "two ranks on one GPU: set deepspeed.gpus_per_rank=1, or deepspeed.ranks=1"
        )
    most = max(rollout.actors, rollout.max_actors or 0)
    key = "rollout.actors" if most == rollout.actors else "rollout.max_actors"
    if need_whole_gpus(config, most):
        raise ValueError(
            f"{key} ({most}) with rollout.gpus_per_actor ({rollout.gpus_per_actor:g}): no two engines can be on one "
            f"GPU: set rollout.gpus_per_actor=1, or {key}=1"
        )
