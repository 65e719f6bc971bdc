"""The estimate of memory in words: the table of `--dry-run`, and what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import RunConfig
from configs.shown import safe
from orchestration.memory import Estimate, estimate
from orchestration.memory_terms import GIB, Need
from orchestration.shapes import ModelShape, ShapeError, shape_of

VOCABULARY_PADDED_TO = 64  # by vLLM


def memory_table(config: RunConfig) -> list[str]:
    """One line a term and one a role; of a model of unknown shape why there is no estimate, and what is not checked."""
    try:
        shape = shape_of(config)
    except ShapeError as error:
        return [safe(f"memory is not estimated: {error}"), *_unchecked(config)]
    found = estimate(config, shape)
    each = "GPU" if config.deepspeed.gpus_per_rank > 0 else "process"
    model = config.model.path or "the small policy, at most"
    lines = [safe(f"memory of each {each}, estimated, GiB ({model}: {found.parameters / 1e6:,.1f} M parameters)")]
    for need in found.needs:
        lines += _table(need)
    return [*lines, *_about_cache(config, found)]


def memory_problems(config: RunConfig) -> list[str]:
    """Why the run cannot be: one line each. Nothing is said of a model of unknown shape."""
    try:
        shape = shape_of(config)
    except ShapeError:
        return []
    found = estimate(config, shape)
    return [*_parts(config, shape), *(_refusal(need) for need in (*found.floors, *found.needs) if not need.fits)]


def not_checked(config: RunConfig) -> list[str]:
    """What `memory_problems` would have to know the model's shape for; one line each."""
    try:
        shape_of(config)
    except ShapeError:
        return list(_unchecked(config))
    return []


def _unchecked(config: RunConfig) -> Iterator[str]:
    if (parts := config.rollout.tensor_parallel) > 1:
        yield f"whether rollout.tensor_parallel ({parts}) divides the model is not checked: engines will say so"


def _table(need: Need) -> Iterator[str]:
    limit = "" if need.limit is None else f" of {_gib(need.limit)}"
    yield f"  {_gib(need.size)}{limit}  {need.role}, most while {need.peak}"
    for term in sorted(need.terms, key=lambda term: -term.size):
        yield f"      {_gib(term.size)}  {term.name}"


def _about_cache(config: RunConfig, found: Estimate) -> Iterator[str]:
    """How many sequences the cache holds, were all as long as they may be."""
    cache, most = found.cache, f"of {config.model.max_model_len} tokens (model.max_model_len)"
    if cache.size is None:
        yield f"  the KV cache is for {cache.sequences} sequences {most}; cluster.gpu_memory_gib says what it will be"
        return
    held = cache.size // cache.sequence
    line = f"  the KV cache holds {held:,} sequences {most}, an actor samples up to {cache.sequences} at once"
    yield line if held >= cache.sequences else f"{line}: where all get that long, some wait"


def _refusal(need: Need) -> str:
    assert need.limit is not None
    term = need.largest
    needed, limit, most = (_gib(size).strip() for size in (need.size, need.limit, term.size))
    return (
        f"a {need.role} needs {needed} GiB of {limit} ({need.of}) while {need.peak}; the largest term is {term.name} "
        f"with {most} GiB: {term.lower}"
    )


def _parts(config: RunConfig, shape: ModelShape) -> Iterator[str]:
    parts = config.rollout.tensor_parallel
    undivided = _undivided(parts, shape)
    if undivided:
        fitting = [n for n in range(1, shape.heads + 1) if not _undivided(n, shape)]
        yield (
            f"rollout.tensor_parallel ({parts}) does not divide the model's {', '.join(undivided)}: take "
            f"{', '.join(map(str, fitting))}"
        )


def _undivided(parts: int, shape: ModelShape) -> list[str]:
    """What vLLM, which asserts it, cannot spread over so many parts of an engine.

    Heads of keys and values are repeated where there are fewer of them than parts; the vocabulary is padded, but not
    by the number of parts.
    """
    kv, padded = shape.kv_heads, -(-shape.vocabulary // VOCABULARY_PADDED_TO) * VOCABULARY_PADDED_TO
    divided = {
        f"{shape.heads} attention heads": shape.heads % parts == 0,
        f"{kv} key-value heads": kv % parts == 0 or parts % kv == 0,
        f"feed-forward width of {shape.intermediate}": shape.intermediate % parts == 0,
        f"vocabulary of {padded} (padded)": padded % parts == 0,
    }
    return [name for name, fits in divided.items() if not fits]


def _gib(size: int) -> str:
    return f"{size / GIB:6.2f}"
