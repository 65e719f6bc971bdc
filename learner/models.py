"""The modules the learner works with: the policy, with adapters where asked for, and the frozen reference."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from configs.schema import LoraSettings, RunConfig
from learner.batches import MicroBatch
from learner.packable import check_packable
from learner.packing import ATTENTION, PackingError, register


class ModelError(ValueError):
    """The policy cannot be trained as asked; names the setting."""


def load_policy(config: RunConfig, path: str) -> Any:
    """The causal LM at `path` in float32, with adapters where model.lora asks for them. Raises ModelError.

    Float32 for bfloat16 runs too: DeepSpeed keeps the optimizer's copy exact and casts the module itself.
    """
    model = load_frozen(config, path)
    if config.model.lora is not None:
        model = _with_adapters(model, config.model.lora)
    else:
        model.requires_grad_(True)
    if config.deepspeed.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.model.lora is not None:
        # Else the first layer, fetched as one, is let go before its backward: ZeRO-3's hooks hang on its inputs.
        model.enable_input_require_grads()
    return model


def load_frozen(config: RunConfig, path: str) -> Any:
    """The causal LM at `path`, untrained and without gradients; for a reference policy."""
    from transformers import AutoModelForCausalLM

    attention: dict[str, Any] = {}
    if config.deepspeed.packing:
        register()
        attention["attn_implementation"] = ATTENTION
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **attention
    )
    model.requires_grad_(False)
    if config.deepspeed.packing:
        check_packable(model, config.model.max_model_len)
    return model


def load_reference(config: RunConfig, path: str, policy: Any) -> Any:
    """The frozen reference of `policy`, which must know the same tokens. Raises ModelError."""
    try:
        reference = load_frozen(config, os.path.expanduser(path))
    except PackingError:
        raise
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"grpo.kl.reference ({path}) cannot be loaded: {first}") from error
    theirs, ours = (model.config.get_text_config().vocab_size for model in (reference, policy))
    if theirs != ours:
        raise ModelError(f"grpo.kl.reference ({path}) has {theirs} tokens, the policy {ours}: other tokens, no KL")
    return reference


def _with_adapters(model: Any, settings: LoraSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ModelError("model.lora needs the package peft: pip install peft, or leave model.lora empty") from None
    names: Any = settings.targets
    if names != "all-linear":
        names = [name.strip() for name in settings.targets.split(",")]
        for name in names:
            if not any(f".{there}".endswith(f".{name}") for there, _ in model.named_modules()):
                raise ModelError(f"model.lora.targets: the model has no module {name!r}")
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=names,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, adapters)
    except ValueError as error:
        raise ModelError(f"model.lora.targets ({settings.targets}): {error}") from error


def target_logits(module: Any, batch: MicroBatch, packing: bool) -> Tensor:
    """Logits (N, V) of the distributions the batch's trained tokens were drawn from; `module`: a model or its engine.

    Only those positions go through the head.
    """
    if packing:
        output = module(
            input_ids=batch.token_ids.unsqueeze(0),
            position_ids=batch.layout.position_ids,
            logits_to_keep=batch.sources,
            row_layout=batch.layout,
            use_cache=False,
        )
        return output.logits[0]
    token_ids, mask = _padded(batch)
    logits = module(input_ids=token_ids, attention_mask=mask.long(), use_cache=False).logits
    return logits[mask][batch.sources]


def _padded(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are tokens: (rows, longest) both, padded on the right."""
    lengths = torch.tensor(batch.lengths, device=batch.token_ids.device)
    mask = torch.arange(max(batch.lengths), device=lengths.device) < lengths.unsqueeze(1)
    token_ids = torch.zeros(mask.shape, dtype=torch.long, device=lengths.device)
    token_ids[mask] = batch.token_ids
    return token_ids, mask
