"""What a run needs of each GPU's memory, or on CPUs of each process's: an estimate, made before anything starts.

What is counted and what is not: docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema import RunConfig
from orchestration.engine_memory import Cache, asleep, engine_floor, engine_need, engine_terms, kv_cache
from orchestration.learner_memory import LOADING, LOADING_REFERENCE, SENDING, host_need, learner_need, learner_phases
from orchestration.memory_terms import GIB, Need, Term
from orchestration.shapes import ModelShape

GPU_MEMORY = "cluster.gpu_memory_gib"


@dataclass(frozen=True, slots=True)
class Estimate:
    """needs: by role. floors: what must hold besides, which is part of the needs. cache: of one part of an engine."""

    parameters: int
    needs: tuple[Need, ...]
    floors: tuple[Need, ...]
    cache: Cache


def estimate(config: RunConfig, shape: ModelShape) -> Estimate:
    """Per learner rank and per engine part; of both together where they share a GPU."""
    if config.shares_gpus:
        needs = [_colocated(config, shape)]
    else:
        ranks = _limit(config, config.deepspeed.gpus_per_rank)
        engines = _limit(config, config.rollout.gpus_per_actor)
        needs = [learner_need(config, shape, ranks, GPU_MEMORY), engine_need(config, shape, engines, GPU_MEMORY)]
    host, floor = host_need(config, shape), engine_floor(config, shape)
    return Estimate(
        parameters=shape.parameters,
        needs=tuple(needs) if host is None else (*needs, host),
        floors=() if floor is None else (floor,),
        cache=kv_cache(config, shape),
    )


def _limit(config: RunConfig, gpus: float) -> int | None:
    """Bytes of a process that asks for so many GPUs; those that ask for half a GPU may be two on one."""
    memory = config.cluster.gpu_memory_gib
    if memory is None or gpus == 0:
        return None
    return int(memory * GIB) // max(1, int(1 / gpus))


def _colocated(config: RunConfig, shape: ModelShape) -> Need:
    """A rank and an engine on one GPU: the engine is asleep while the rank computes, and awake while it sends or loads.

    Of all there is at those times what the rank keeps, and a bucket, or the whole model or reference policy once.
    """
    engine = _named("engine", engine_terms(config, shape))
    of_rank, awake = learner_phases(config, shape), (SENDING, LOADING, LOADING_REFERENCE)
    phases = {
        phase: [*_named("learner", terms), *(engine if phase in awake else [asleep(config)])]
        for phase, terms in of_rank.items()
    }
    memory = config.cluster.gpu_memory_gib
    limit = None if memory is None else int(memory * GIB)
    return Need("GPU of a learner rank and an engine", phases, limit, GPU_MEMORY)


def _named(role: str, terms: Sequence[Term]) -> list[Term]:
    return [replace(term, name=f"{role}: {term.name}") for term in terms]
