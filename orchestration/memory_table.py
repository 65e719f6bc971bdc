"""The estimate of memory in words: the table of `--dry-run`, and what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import RunConfig
from configs.shown import safe
from orchestration.memory import Estimate, estimate
from orchestration.memory_terms import GIB, Need
from orchestration.shapes import ModelShape, ShapeError, shape_of


def memory_table(config: RunConfig) -> list[str]:
    """One line a term and one a role; of a model of unknown shape one line that says why there is no estimate."""
    try:
        shape = shape_of(config)
    except ShapeError as error:
        return [safe(f"memory is not estimated: {error}")]
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
    return [*_heads(config, shape), *(_refusal(need) for need in (*found.floors, *found.needs) if not need.fits)]


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


def _heads(config: RunConfig, shape: ModelShape) -> Iterator[str]:
    parts, most = config.rollout.tensor_parallel, shape.heads
    fitting = [n for n in range(1, most + 1) if _divides(n, shape)]
    if parts not in fitting:
        yield (
            f"rollout.tensor_parallel ({parts}) does not divide the model's {shape.heads} attention heads and "
            f"{shape.kv_heads} key-value heads: take {', '.join(map(str, fitting))}"
        )


def _divides(parts: int, shape: ModelShape) -> bool:
    """As vLLM spreads heads: those of keys and values are repeated where there are fewer of them than parts."""
    kv = shape.kv_heads
    return shape.heads % parts == 0 and (kv % parts == 0 or parts % kv == 0)


def _gib(size: int) -> str:
    return f"{size / GIB:6.2f}"
