"""How large a model is, from its config.json, here or in Hugging Face's cache; those of `configs/gpu/` are known."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.files import json_object
from configs.schema import RunConfig

MOST_BYTES = 2**24
# Types of models whose layers are counted here.
TYPES = ("llama", "mistral", "qwen2", "qwen3")


class ShapeError(ValueError):
    """The model's shape cannot be known; says why."""


class NotHereError(ShapeError):
    """The model has a hub id, and was never downloaded on this machine."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of grouped-query attention and gated feed-forward layers with RMS norms.

    tied: the head is the embedding. qkv_bias, output_bias, mlp_bias: which linear layers have one. head_norms: queries
    and keys are normalised head by head (Qwen3).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False

    @property
    def query_width(self) -> int:
        """Elements of a token's queries, all heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, or of its values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        h, i, q, kv = self.hidden, self.intermediate, self.query_width, self.kv_width
        return {
            "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
            "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h),
        }  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        h, i = self.hidden, self.intermediate
        matrices = sum(inputs * outputs for inputs, outputs in self.linears.values())
        biases = self.qkv_bias * (self.query_width + 2 * self.kv_width) + self.output_bias * h
        biases += self.mlp_bias * (2 * i + h)
        norms = 2 * h + self.head_norms * 2 * self.head_dim
        return matrices + biases + norms

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of the checkpoint, a tied head once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def largest_parameter(self) -> int:
        return max(self.embedding_parameters, self.hidden * self.intermediate)

    def adapter_parameters(self, rank: int, targets: str) -> int:
        """Of low-rank adapters (arXiv 2106.09685) on these linear maps: rank * (inputs + outputs) each."""
        names = list(self.linears) if targets == "all-linear" else [name.strip() for name in targets.split(",")]
        sizes = [sum(ends) for name, ends in self.linears.items() if name in names]
        return self.layers * rank * sum(sizes)


def _qwen2(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, tied: bool
) -> ModelShape:
    return ModelShape(layers, hidden, heads, kv_heads, hidden // heads, intermediate, vocabulary, tied, qkv_bias=True)


# From the config.json that each is published with.
KNOWN: Mapping[str, ModelShape] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(24, 896, 14, 2, 4864, 151_936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(28, 1536, 12, 2, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(36, 2048, 16, 2, 11_008, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(28, 3584, 28, 4, 18_944, 152_064, tied=False),
}


def shape_of(config: RunConfig) -> ModelShape:
    """Of the policy a run starts from. Raises ShapeError where it is neither here nor known."""
    path = config.model.path
    if path is None:
        return _small_policy(config)
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # nobody has the home that `~name` stands for
        raise ShapeError(f"model.path: {path}: {error}") from error
    if folder.is_dir():
        return shape_in(folder / "config.json")
    if path in KNOWN:
        return KNOWN[path]
    if (cached := _in_cache(path)) is not None:
        return shape_in(cached)
    raise NotHereError(f"model.path: {path} is not on this machine: give a folder that holds its config.json")


def look_up(config: RunConfig) -> None:
    """Download the config.json that `shape_of` misses into Hugging Face's cache, where engines and ranks look too.

    Where it cannot be had everything stays as it is; without a network that takes half a minute.
    """
    from huggingface_hub import hf_hub_download

    try:
        shape_of(config)
    except NotHereError:
        with suppress(OSError, ValueError):
            hf_hub_download(str(config.model.path), "config.json")
    except ShapeError:
        return


def _in_cache(model: str) -> Path | None:
    """The config.json of a hub id in Hugging Face's cache, if it was downloaded before; nothing is downloaded."""
    # Imported here: most runs need none of it.
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except (OSError, ValueError):  # what is no hub id, or a cache that cannot be read
        return None
    return Path(found) if isinstance(found, str) else None


def shape_in(file: Path) -> ModelShape:
    """Of a model's config.json. Raises ShapeError."""
    try:
        settings = json_object(file, MOST_BYTES)
    except ValueError as error:
        raise ShapeError(str(error)) from error
    try:
        return parsed(settings)
    except ShapeError as error:
        raise ShapeError(f"{file}: {error}") from error


def parsed(settings: Mapping[str, Any]) -> ModelShape:
    """From the keys of a config.json. Raises ShapeError naming the key that is missing or wrong."""
    kind = settings.get("model_type")
    if kind not in TYPES:
        raise ShapeError(f"model_type {kind!r:.60} is not among those whose size is known: {', '.join(TYPES)}")
    hidden, heads = _count(settings, "hidden_size"), _count(settings, "num_attention_heads")
    own_bias = kind != "mistral" and bool(settings.get("attention_bias"))
    return ModelShape(
        layers=_count(settings, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_count(settings, "num_key_value_heads", heads),
        head_dim=_count(settings, "head_dim", hidden // heads),
        intermediate=_count(settings, "intermediate_size"),
        vocabulary=_count(settings, "vocab_size"),
        tied=bool(settings.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2" or own_bias,
        output_bias=kind != "qwen2" and own_bias,
        mlp_bias=kind == "llama" and bool(settings.get("mlp_bias")),
        head_norms=kind == "qwen3",
    )


def _count(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = settings.get(key)
    if value is None:
        value = default
    if value is None:
        raise ShapeError(f"{key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeError(f"{key}: a count is expected, got {value!r:.60}")
    return value


def _small_policy(config: RunConfig) -> ModelShape:
    """As `learner/warmup.py` makes it; the vocabulary is the most it may have."""
    own = config.model.warmup
    return _qwen2(own.layers, own.hidden, own.heads, own.heads, 3 * own.hidden, own.vocabulary, tied=False)
