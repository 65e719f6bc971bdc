"""What one would write without this project: GRPO's loss on padded rows, under DeepSpeed's ZeRO-3 or in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from configs.schema import RunConfig
from envs.codec import decode_group
from learner.rows import TrainingRow, training_rows


class PlainLearner:
    """rank: of config.deepspeed.ranks, or None for one process without DeepSpeed, on all cores."""

    def __init__(self, config: RunConfig, policy: str, rank: int | None) -> None:
        self._config, self._policy, self._rank = config, policy, rank

    def start(self, address: str, port: int) -> None:
        from transformers import AutoModelForCausalLM

        if self._rank is None:
            torch.set_num_threads(os.cpu_count() or 1)
        else:
            from learner.zero3 import join_ranks

            join_ranks(self._config, self._rank, address, port)
        model = AutoModelForCausalLM.from_pretrained(self._policy, dtype=torch.float32)
        settings = self._config.optim
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self._module: Any = model.train()
        if self._rank is not None:
            import deepspeed

            zero3 = {
                "train_micro_batch_size_per_gpu": 1,
                "steps_per_print": 10**9,
                "gradient_clipping": settings.max_grad_norm,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": 3},
            }
            self._module, *_ = deepspeed.initialize(model=model, optimizer=self._optimizer, config=zero3)

    def update(self, payloads: Sequence[bytes]) -> float:
        """One optimizer step on the groups; seconds."""
        began = time.monotonic()
        rows = training_rows([decode_group(data) for data in payloads], self._config)
        batches = padded_batches(self._share(rows), self._config.deepspeed.tokens_per_micro_batch)
        for number, batch in enumerate(batches):
            if self._rank is None:
                self._loss(batch).backward()
            else:
                self._module.set_gradient_accumulation_boundary(number == len(batches) - 1)
                self._module.backward(self._loss(batch) * self._config.deepspeed.ranks)
        if self._rank is None:
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._config.optim.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
        else:
            self._module.step()
        return time.monotonic() - began

    def _share(self, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
        by_length = sorted(rows, key=lambda row: -len(row.token_ids))
        return by_length if self._rank is None else by_length[self._rank :: self._config.deepspeed.ranks]

    def _loss(self, rows: Sequence[TrainingRow]) -> Tensor:
        """Clipped policy gradient (arXiv 2402.03300) on rows padded to the longest."""
        longest = max(len(row.token_ids) for row in rows)
        token_ids, attention = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        advantages, weights = (torch.zeros(len(rows), longest) for _ in range(2))
        for i, row in enumerate(rows):
            token_ids[i, : len(row.token_ids)] = torch.as_tensor(row.token_ids, dtype=torch.long)
            attention[i, : len(row.token_ids)] = 1
            advantages[i, row.targets] = torch.as_tensor(row.advantages)
            weights[i, row.targets] = torch.as_tensor(row.loss_weights)
        logits = self._module(input_ids=token_ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, token_ids[:, 1:, None]).squeeze(-1)
        ratio = (logprobs - logprobs.detach()).exp()
        clipped = ratio.clamp(1 - self._config.grpo.clip_low, 1 + self._config.grpo.clip_high)
        gained = torch.minimum(ratio * advantages[:, 1:], clipped * advantages[:, 1:])
        return -(gained * weights[:, 1:]).sum()


def padded_batches(rows: Sequence[TrainingRow], budget: int) -> list[list[TrainingRow]]:
    """Rows, longest first, by padded tokens within the budget."""
    batches: list[list[TrainingRow]] = [[]]
    for row in rows:
        widest = len(batches[-1][0].token_ids) if batches[-1] else 0
        if batches[-1] and (len(batches[-1]) + 1) * widest > budget:
            batches.append([])
        batches[-1].append(row)
    return batches
