"""Policies for tests on the real stack: seconds to make, of no skill worth the name."""

from __future__ import annotations

from pathlib import Path

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


def _random_policy(like: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(like)
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("tied")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder
