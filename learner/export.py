"""The policy as a folder in Hugging Face format, as `transformers` and `vllm` load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from learner.gather import gathered_parameters


def export_policy(module: Any, folder: Path, tokenizer: str, dtype: torch.dtype, writes: bool) -> None:
    """Whole weights, adapters merged; all ranks must call, the one that `writes` does. tokenizer: whose it is."""
    tensors = {}
    for name, tensor in gathered_parameters(module, dtype):
        if writes:
            tensors[name] = tensor.to("cpu", copy=True)
    if writes:
        from transformers import AutoTokenizer

        folder.mkdir(parents=True, exist_ok=True)
        base = module.get_base_model() if hasattr(module, "get_base_model") else module
        base.save_pretrained(folder, state_dict=tensors)
        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).save_pretrained(folder)
