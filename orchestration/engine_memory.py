"""Memory of a rollout actor's engine: on a GPU it takes rollout.gpu_memory_share, the rest of it as KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from actors.engine_arguments import STEP_TOKENS
from configs.samplers import (
    DdeSettings,
    ParallelSettings,
    SamplerSettings,
    SequentialSettings,
    SesaSettings,
    TreeSettings,
    VerbalizedSettings,
)
from configs.schema import RunConfig
from orchestration.memory_terms import BYTES_OF, CUDA_CONTEXT, GIB, MIB, SMALLER, Need, Term, either, share
from orchestration.shapes import ModelShape

CUDA_GRAPHS = GIB  # captured inside the engine's share: vLLM leaves them room
# Resident memory on CPUs beyond the other terms, measured on quickstart.yaml: about 530 MiB are imported libraries, the
# rest is what vLLM's CPU kernels work with and the allocator keeps of freed blocks.
LIBRARIES = 760 * MIB

TAKING = "taking weights"


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of one part of an engine. sequence: bytes of one of model.max_model_len tokens.

    sequences: that are sampled at once. size: bytes; None on a GPU of which nobody said how large it is.
    """

    sequence: int
    sequences: int
    size: int | None

    @property
    def wanted(self) -> int:
        """Bytes with which no sequence ever waits, were all as long as they may be."""
        return self.sequence * self.sequences


def engine_need(config: RunConfig, shape: ModelShape, limit: int | None = None, of: str = "") -> Need:
    """Of the device that one part of an engine computes on: a GPU, or on CPUs the actor's process."""
    return Need(_role(config), {TAKING: engine_terms(config, shape)}, limit, of)


def engine_floor(config: RunConfig, shape: ModelShape) -> Need | None:
    """What must fit into an engine's share of a GPU for it to start; None on CPUs and where memory is not known."""
    memory = config.cluster.gpu_memory_gib
    if memory is None or config.rollout.gpus_per_actor == 0:
        return None
    one = Term("KV cache of one context", kv_cache(config, shape).sequence, "lower model.max_model_len")
    limit = int(config.rollout.gpu_memory_share * memory * GIB)
    of = "rollout.gpu_memory_share of cluster.gpu_memory_gib"
    return Need(_role(config), {"starting": [*_before_cache(config, shape), one]}, limit, of)


def engine_terms(config: RunConfig, shape: ModelShape) -> list[Term]:
    """All that an engine ever holds, taken together: it takes weights with its cache in place."""
    on_gpu = config.rollout.gpus_per_actor > 0
    cache = kv_cache(config, shape)
    lower = "lower rollout.gpu_memory_share" if on_gpu else "lower rollout.kv_cache_mib"
    terms = [*_before_cache(config, shape), Term("KV cache", cache.wanted if cache.size is None else cache.size, lower)]
    return [*terms, _taking(config, shape)]


def asleep(config: RunConfig) -> Term:
    """What an engine keeps of its GPU while it sleeps."""
    graphs = CUDA_GRAPHS if config.rollout.cuda_graphs else 0
    return Term("sleeping engine", CUDA_CONTEXT + graphs)


def kv_cache(config: RunConfig, shape: ModelShape) -> Cache:
    """Keys and values of every layer, for model.max_model_len tokens a sequence; heads are spread over the parts."""
    rollout, width = config.rollout, BYTES_OF[config.model.dtype]
    heads = share(shape.kv_heads, rollout.tensor_parallel)
    sequence = 2 * shape.layers * heads * shape.head_dim * width * config.model.max_model_len
    sequences = min(rollout.max_num_seqs, rollout.prompts_in_flight * solutions_at_once(config.sampler))
    if rollout.gpus_per_actor == 0:
        return Cache(sequence, sequences, rollout.kv_cache_mib * MIB)
    if config.cluster.gpu_memory_gib is None:
        return Cache(sequence, sequences, None)
    taken = sum(term.size for term in _before_cache(config, shape))
    left = int(rollout.gpu_memory_share * config.cluster.gpu_memory_gib * GIB) - taken
    return Cache(sequence, sequences, max(left, sequence))


def solutions_at_once(sampler: SamplerSettings) -> int:
    """Most sequences of one prompt that are sampled side by side."""
    match sampler:
        case ParallelSettings():
            return sampler.group_size
        case SequentialSettings():
            return sampler.lists
        case SesaSettings():
            return sampler.sketches * sampler.expansions_per_sketch + sampler.plain_solutions
        case VerbalizedSettings():
            return sampler.responses
        case TreeSettings():
            return sampler.trees * max(1, sampler.forks * sampler.branches * min(sampler.rounds, 1))
        case DdeSettings():
            roots = solutions_at_once(sampler.root)
            pivots = roots if sampler.max_pivots is None else min(roots, sampler.max_pivots)
            return max(roots, pivots * sampler.branches)


def _role(config: RunConfig) -> str:
    return "rollout actor" if config.rollout.tensor_parallel == 1 else "GPU of a rollout actor"


def _before_cache(config: RunConfig, shape: ModelShape) -> list[Term]:
    """What an engine has before it makes its cache."""
    rollout, width = config.rollout, BYTES_OF[config.model.dtype]
    on_gpu, parts = rollout.gpus_per_actor > 0, rollout.tensor_parallel
    more = either("raise rollout.tensor_parallel", "rollout.gpu_memory_share") if on_gpu else SMALLER
    tokens = max(STEP_TOKENS, config.model.max_model_len)
    spread = share(2 * shape.intermediate + shape.query_width + 2 * shape.kv_width, parts)
    # A step's hidden states, and the logits of its sequences in float32: raw, scaled and as log-probs.
    working = tokens * width * (spread + 4 * shape.hidden) + 12 * rollout.max_num_seqs * shape.vocabulary
    runtime = Term("CUDA context", CUDA_CONTEXT) if on_gpu else Term("libraries", LIBRARIES)
    graphs = Term("CUDA graphs", CUDA_GRAPHS, "set rollout.cuda_graphs=false")
    return [
        Term("weights", share(shape.parameters, parts) * width, more),
        Term("activations", working, "lower rollout.max_num_seqs"),
        runtime,
        *([graphs] if on_gpu and rollout.cuda_graphs else []),
    ]


def _taking(config: RunConfig, shape: ModelShape) -> Term:
    """Two buckets, each closed by the parameter that fills it, and the layer that is put together from them.

    By CUDA IPC there is the copy of one: what is read is the rank's.
    """
    width, parts = BYTES_OF[config.model.dtype], config.rollout.tensor_parallel
    bucket = config.sync.bucket_mib * MIB + shape.largest_parameter * width
    buckets = 1 if config.transfer_backend == "ipc" else 2
    layer = share(shape.layer_parameters, parts) * width
    return Term("transfer buckets", buckets * bucket + layer, "lower sync.bucket_mib")
