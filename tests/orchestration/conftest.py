"""Policies for tests on the real stack: seconds to make, of no skill worth the name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained policy that mostly answers in the right form: its groups hold unequal rewards."""
    from configs.schema import RunConfig
    from orchestration.policy import ensure_policy

    warmup = {
        "layers": 2,
        "hidden": 64,
        "heads": 2,
        "demonstrations": 600,
        "cache": str(tmp_path_factory.mktemp("policies")),
    }
    return ensure_policy(RunConfig.model_validate({"model": {"warmup": warmup}}), print)


@pytest.fixture(scope="session")
def tied_policies(small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random policies of one shape whose heads are tied to their embeddings."""
    return _random_policy(small_policy, tmp_path_factory, 1), _random_policy(small_policy, tmp_path_factory, 2)


@pytest.fixture(scope="session")
def fused_policies(small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random policies of a kind whose checkpoints hold fused projections (qkv_proj, gate_up_proj)."""
    from transformers import AutoConfig, AutoTokenizer, Phi3Config

    like = AutoConfig.from_pretrained(small_policy)
    tokenizer = AutoTokenizer.from_pretrained(small_policy)
    config = Phi3Config(
        vocab_size=like.vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, original_max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _saved(config, tokenizer, tmp_path_factory, 1), _saved(config, tokenizer, tmp_path_factory, 2)


def _random_policy(like: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(like)
    config.tie_word_embeddings = True
    return _saved(config, AutoTokenizer.from_pretrained(like), tmp_path_factory, seed)


def _saved(config: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
