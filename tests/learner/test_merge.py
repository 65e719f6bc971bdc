"""Adapters merged into the weights they adapt: by hand, and as peft itself does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.gather import gathered_parameters
from learner.merge import MergeError, merged, plain_parameters


def small_model(tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def with_adapters(model: Any, targets: str | list[str] = "all-linear") -> Any:
    adapted: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:  # B begins as zero: nothing to merge
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


def test_merged_is_the_weight_and_the_scaled_product() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    a, b = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0], [3.0]])
    assert merged(weight, a, b, 0.5).tolist() == [[2.0, 2.0, 2.0], [5.5, 5.0, 4.5]]


def test_a_narrow_weight_is_merged_in_float32() -> None:
    """1 + 2 * 0.01 * 0.5 = 1.01: bfloat16 steps by 2^-7 there, and its product would be rounded before it is added."""
    weight, a, b = (torch.tensor([[value]], dtype=torch.bfloat16) for value in (1.0, 0.01, 0.5))
    exact = torch.tensor(1.0 + 2 * float(a) * float(b)).to(torch.bfloat16)
    found = merged(weight, a, b, 2.0)
    assert found.dtype == torch.bfloat16
    assert found.item() == exact.item()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_names_and_weights_are_those_of_peft_merging_itself(tied: bool, targets: str | list[str]) -> None:
    adapted = with_adapters(small_model(tied), targets)
    plain = small_model(tied)
    found = {name: tensor.clone() for name, tensor in gathered_parameters(adapted, torch.float32)}
    own = dict(adapted.merge_and_unload().named_parameters())
    assert list(found) == list(own) == [name for name, _ in plain.named_parameters()]
    for name, tensor in own.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=1e-6, atol=1e-7)
    changed = {name for name, p in plain.named_parameters() if not torch.equal(found[name], p)}
    assert "model.layers.1.self_attn.q_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed


def test_a_model_without_adapters_comes_as_it_is() -> None:
    model = small_model()
    assert [(p.name, p.shape) for p in plain_parameters(model)] == [
        (name, tuple(p.shape)) for name, p in model.named_parameters()
    ]


def test_shapes_are_known_without_gathering() -> None:
    adapted = with_adapters(small_model())
    tensors = {name: tuple(tensor.shape) for name, tensor in gathered_parameters(adapted, torch.float32)}
    assert {p.name: p.shape for p in plain_parameters(adapted)} == tensors


def test_an_adapter_on_a_tied_head_is_refused() -> None:
    adapted = with_adapters(small_model(tied=True), ["q_proj", "lm_head"])
    with pytest.raises(MergeError, match=r"lm_head\.weight: tied to another weight.*model\.lora\.targets"):
        plain_parameters(adapted)


def test_an_adapter_on_anything_but_a_linear_layer_is_refused() -> None:
    adapted = with_adapters(small_model(), ["embed_tokens"])
    with pytest.raises(MergeError, match=r"model\.embed_tokens: only one adapter on a linear layer"):
        plain_parameters(adapted)
