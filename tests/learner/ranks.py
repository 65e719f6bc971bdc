"""ZeRO-3 ranks under test: the real rank actor, which also tells its gradients, on a tiny random policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from configs.schema import RunConfig
from learner.rank import LearnerRank
from learner.rows import TrainingRow
from learner.update_sums import UpdateSums, add_up
from orchestration import cluster
from tests.builders import byte_tokenizer

VOCABULARY = 96
Gradients = dict[str, torch.Tensor]


class OpenRank(LearnerRank):
    """A rank that takes rows as they are, under other settings than it was started with where those are given."""

    def gradients(self, rows: Sequence[TrainingRow], config: RunConfig | None = None) -> tuple[Gradients, UpdateSums]:
        """Whole gradients of the loss before any clipping, by name; no step is made."""
        from deepspeed.utils import safe_get_full_grad

        kept: Gradients = {}

        def keep_gradients() -> None:
            for name, parameter in self._engine.module.named_parameters():
                gradient = safe_get_full_grad(parameter) if parameter.requires_grad else None
                if gradient is not None:
                    kept[name] = gradient.clone()
            self._engine.optimizer._overflow_clean_up(1.0)

        step, self._engine.step = self._engine.step, keep_gradients
        norm, self._engine.get_global_grad_norm = self._engine.get_global_grad_norm, lambda: 0.0
        try:
            sums = self.with_settings(config, lambda: self._learner.update(rows, self.version))
        finally:
            self._engine.step, self._engine.get_global_grad_norm = step, norm
        return kept, sums

    def with_settings(self, config: RunConfig | None, call: Callable[[], UpdateSums]) -> UpdateSums:
        own = self._learner._config
        self._learner._config = config or own
        self._engine.module.set_attn_implementation(
            "rows_end_to_end" if self._learner._config.deepspeed.packing else "sdpa"
        )
        try:
            return call()
        finally:
            self._learner._config = own

    def update_rows(self, rows: Sequence[TrainingRow], config: RunConfig | None = None) -> UpdateSums:
        sums = self.with_settings(config, lambda: self._learner.update(rows, self.version))
        self.version += 1
        return sums

    def weights(self) -> Gradients:
        from learner.gather import gathered_parameters

        return {name: tensor.clone() for name, tensor in gathered_parameters(self._engine.module, torch.float32)}


class Ranks:
    """All ranks of one learner; every call goes to each at once."""

    def __init__(self, config: RunConfig, policy: Path) -> None:
        self.config = config
        remote: Any = ray.remote(OpenRank)
        self.ranks = [
            remote.options(
                num_cpus=0,
                num_gpus=config.deepspeed.gpus_per_rank,
                runtime_env={"env_vars": cluster.learner_env(config)},
            ).remote(config, str(policy), i)
            for i in range(config.deepspeed.ranks)
        ]
        self.all("start", *ray.get(self.ranks[0].meet.remote(), timeout=60))

    def all(self, method: str, *arguments: Any) -> list[Any]:
        return list(ray.get([getattr(rank, method).remote(*arguments) for rank in self.ranks], timeout=120))

    def gradients(self, rows: Sequence[TrainingRow], config: RunConfig | None = None) -> tuple[Gradients, UpdateSums]:
        answers = self.all("gradients", list(rows), config)
        return answers[0][0], add_up([sums for _, sums in answers])

    def update(self, rows: Sequence[TrainingRow], config: RunConfig | None = None) -> UpdateSums:
        return add_up(self.all("update_rows", list(rows), config))

    def weights(self) -> Gradients:
        weights: Gradients = self.all("weights")[0]
        return weights

    def stop(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)


@contextmanager
def local_ray() -> Iterator[None]:
    cluster.connect(RunConfig.model_validate({"cluster": {"dashboard": False, "local_cpus": 8}}))
    try:
        yield
    finally:
        ray.shutdown()


def settings(ranks: int = 1, **groups: Any) -> RunConfig:
    """A run on `ranks` ranks, rewards not divided by their deviation, no gradient clipped."""
    merged: dict[str, Any] = {"deepspeed": {"ranks": ranks}, "optim": {"max_grad_norm": 1e9, "lr": 1e-2}}
    for name, values in groups.items():
        merged[name] = {**merged.get(name, {}), **values}
    return RunConfig.model_validate(merged)


def tiny_policy(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Qwen2 of 60 k parameters, two key heads for four query heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    } | changes  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)  # peaky enough for ratios, clips and masks to matter
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def random_rows(count: int, seed: int = 0, longest: int = 60) -> list[TrainingRow]:
    """Rows of one to three sequences in random streams, with behaviour log-probs near and far from the policy's.

    Groups of four; in every other one the rows begin alike for 12 tokens.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        if number % 4 == 0:
            shared = rng.integers(0, VOCABULARY, size=12 * (number // 4 % 2))
        n = len(shared) + int(rng.integers(6, longest))
        places = np.arange(max(len(shared), 1), n)
        targets = np.sort(rng.choice(places, size=int(rng.integers(2, len(places))), replace=False)).astype(np.int32)
        m = len(targets)
        _, sequences = np.unique(np.sort(rng.integers(0, 3, size=m)), return_inverse=True)
        rows.append(
            TrainingRow(
                group=number // 4,
                token_ids=np.concatenate([shared, rng.integers(0, VOCABULARY, n - len(shared))]).astype(np.int32),
                targets=targets,
                sequences=sequences.astype(np.int32),
                streams=rng.integers(0, 3, size=3).astype(np.int32)[sequences],
                behaviour_logprobs=rng.normal(-4.6, 0.5, size=m).astype(np.float32),
                policy_versions=np.zeros(m, np.int32),
                advantages=rng.normal(size=3).astype(np.float32)[sequences],
                loss_weights=np.full(m, 1 / 100, np.float32),
                own_context=number % 3 != 0,
                importance_cap=[2.0, None, 1.1][number % 3],
            )
        )
    return rows
