"""The learner on one GPU: tokens a second and model-FLOPs utilisation, random weights in real architectures.

make bench ARGS="--only gpu --rounds 3"
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from configs.schema import RunConfig
from learner.rows import TrainingRow
from tests.bench.rounds import rounded
from tests.learner.ranks import Ranks, local_ray, settings

# Dense bfloat16 peak of a device, FLOP/s, by its whole name (the makers' data sheets); of others there is no share.
PEAKS: Mapping[str, float] = {
    "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12,
}  # fmt: skip
TOKENS_AN_UPDATE = 65_536
TOKENS_A_MICRO_BATCH = 16_384


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2 architecture (their published configurations)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """Of the matrices of all layers."""
        kv = self.hidden * self.kv_heads // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def flops(self, length: int, trained_share: float) -> float:
        """Of a token, forward and backward: 6 a parameter of a matrix, and causal attention.

        The head counts for trained tokens only. Attention: 2 products of 2 * hidden * length / 2 a layer forward, and
        twice that backward (PaLM, arXiv 2204.02311, appendix B, halved for the mask).
        """
        head = self.hidden * self.vocabulary * trained_share
        return 6 * (self.layer_parameters + head) + 6 * self.layers * self.hidden * length


SHAPES: Mapping[str, Shape] = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 151_936),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936),
}
LENGTHS = (512, 2048, 8192)


def measure(rounds: int) -> dict[str, Any]:
    """Raises SystemExit where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("bench: the part `gpu` needs a CUDA device, and there is none here")
    name = torch.cuda.get_device_name()
    peak = PEAKS.get(name)
    with local_ray():
        found = {size: measure_size(shape, LENGTHS, rounds, peak, on_gpu=True) for size, shape in SHAPES.items()}
    return {"device": name, "peak_tflops": peak and peak / 1e12, **found}


def measure_size(
    shape: Shape,
    lengths: tuple[int, ...],
    rounds: int,
    peak: float | None,
    on_gpu: bool,
    tokens: int = TOKENS_AN_UPDATE,
) -> dict[str, Any]:
    """Figures by length of the rows: medians over `rounds` updates, after one that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(run_config(max(lengths), on_gpu), random_policy(shape, Path(folder)))
    figures = {str(length): _measure_length(ranks, shape, length, rounds, peak, tokens) for length in lengths}
    ranks.stop()
    return figures


def _measure_length(
    ranks: Ranks, shape: Shape, length: int, rounds: int, peak: float | None, tokens: int
) -> dict[str, Any]:
    rows = random_rows(shape, length, max(tokens // length, 1))
    updates = [ranks.update(rows) for _ in range(rounds + 1)][1:]
    speed = median(sums.forward_tokens / sums.seconds for sums in updates)
    share = updates[0].tokens / updates[0].forward_tokens
    flops = speed * shape.flops(length, share)
    return {
        "tokens_per_s": rounded(speed),
        "model_tflops_per_s": rounded(flops / 1e12),
        "model_flops_utilisation": rounded(flops / peak) if peak else None,
    }


def run_config(longest: int, on_gpu: bool) -> RunConfig:
    deepspeed = {
        "tokens_per_micro_batch": TOKENS_A_MICRO_BATCH,
        "gradient_checkpointing": on_gpu,
        "gpus_per_rank": float(on_gpu),
    }
    rollout = {"gpus_per_actor": float(on_gpu)}
    model = {"dtype": "bfloat16", "max_model_len": longest}
    return settings(1, deepspeed=deepspeed, rollout=rollout, model=model, optim={"lr": 1e-6})


def random_policy(shape: Shape, folder: Path) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def random_rows(shape: Shape, length: int, count: int) -> list[TrainingRow]:
    """Rows that share nothing, trained on their second half."""
    rng = np.random.default_rng(0)
    m = length // 2
    floats, ints = np.ones(m, np.float32), np.zeros(m, np.int32)
    return [
        TrainingRow(
            group=number,
            token_ids=rng.integers(0, shape.vocabulary, length).astype(np.int32),
            targets=np.arange(length - m, length, dtype=np.int32),
            sequences=ints,
            streams=ints,
            behaviour_logprobs=floats * -10,
            policy_versions=ints,
            advantages=floats * (1 - 2 * (number % 2)),
            loss_weights=np.full(m, 1 / (count * m), np.float32),
            own_context=True,
            importance_cap=2.0,
        )
        for number in range(count)
    ]
