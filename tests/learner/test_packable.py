"""Models that can be trained on rows end to end, and models that must not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.packable import check_packable
from learner.packing import ATTENTION, PackingError, register

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def model(kind: str, **changes: Any) -> Any:
    register()
    config = AutoConfig.for_model(kind, **SMALL | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().float()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_plain_attention_can(kind: str) -> None:
    checked = model(kind)
    check_packable(checked, 512)
    assert checked.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mamba", "bloom"])
def test_what_does_more_than_attention_cannot_and_is_told(kind: str) -> None:
    """Softcaps, sinks, a state that is carried on, a bias by position."""
    with pytest.raises(PackingError, match=r"^deepspeed\.packing: .*set deepspeed\.packing=false$") as refusal:
        check_packable(model(kind), 16)
    assert "\n" not in str(refusal.value)


def test_a_window_shorter_than_a_row_is_told() -> None:
    sliding = model("mistral", sliding_window=32)
    check_packable(sliding, 32)
    with pytest.raises(PackingError, match=r"attends to 32 tokens only, model\.max_model_len is 64"):
        check_packable(sliding, 64)
