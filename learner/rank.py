"""One ZeRO-3 rank as a Ray actor: decodes the batch, takes its share of micro-batches, steps, sends weights.

Every rank gets the whole batch and plans all shares alike, so T_stream and the number of forwards need no messages.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from configs.schema import RunConfig
from envs.codec import decode_group
from learner.batches import MicroBatch, collate, plan_micro_batches
from learner.losses import clipped_policy_gradient, token_logprobs, truncated_importance, weighted_sum
from learner.rows import TrainingRow, training_rows
from learner.update_sums import UpdateSums, add_up
from learner.zero3 import join_ranks, zero3_engine

if TYPE_CHECKING:
    from learner.weight_sender import WeightSender


class LearnerRank:
    """Rank `rank` of `config.deepspeed.ranks`. Call `address` on rank 0, then `start` on all with what it returned."""

    def __init__(self, config: RunConfig, policy: str, rank: int) -> None:
        self._config, self._policy, self._rank = config, policy, rank
        self._sender: WeightSender | None = None
        self.version = 0

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def start(self, address: str, port: int) -> int:
        """Join the ranks and load the policy; returns the number of its parameters."""
        self._device = torch.device("cuda" if self._config.deepspeed.gpus_per_rank > 0 else "cpu")
        join_ranks(self._config, self._rank, address, port)
        self._engine, self._optimizer = zero3_engine(self._config, self._policy)
        return sum(p.ds_numel for p in self._engine.module.parameters())

    def connect(self, actors: Sequence[ActorHandle], address: str, port: int) -> None:
        """Rank 0 opens the weight group with all actors; the other ranks have nothing to open."""
        if self._rank == 0:
            # vllm takes seconds to import: only the rank that sends pays for it.
            from learner.weight_sender import WeightSender

            self._sender = WeightSender(self._engine.module, actors, address, port, self._config)

    def update(self, payloads: Sequence[bytes]) -> UpdateSums:
        """One GRPO update on a batch of encoded groups, on all ranks at once: version + 1."""
        began = time.monotonic()
        rows = training_rows([decode_group(data) for data in payloads], self._config.grpo)
        micro_batches = self._share(rows)
        epochs = self._config.grpo.epochs
        # With one step a batch, the log-probs before it are the current ones: no forward is spent on them.
        old = self._old_logprobs(micro_batches) if epochs > 1 else None
        lr = self._set_lr()
        passes = [self._epoch(micro_batches, old) for _ in range(epochs)]
        self.version += 1
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        # Figures are of the first pass, before any step; what is clipped and worked through, of all.
        return replace(
            passes[0],
            clipped=sum(p.clipped for p in passes) / epochs,
            forward_tokens=sum(p.forward_tokens for p in passes),
            seconds=time.monotonic() - began,
            grad_norm=norm,
            lr=lr,
        )

    def score(self, payloads: Sequence[bytes]) -> UpdateSums:
        """Compare the engine's log-probs with the learner's on encoded groups, without training (the `own_*` sums)."""
        rows = training_rows([decode_group(data) for data in payloads], self._config.grpo)
        sums = UpdateSums()
        with torch.no_grad():
            for batch in self._share(rows):
                logprobs, entropy = self._forward(batch)
                unused = torch.zeros_like(logprobs)
                sums = add_up([sums, self._sums(batch, logprobs, unused, entropy, unused, 0.0)])
        return sums

    def broadcast(self, version: int) -> float:
        """Send the weights as `version` to every actor; every rank joins. Returns the seconds it took."""
        began = time.monotonic()
        if self._sender is not None:
            self._sender.send(version)
        else:
            from learner.gather import gathered_parameters

            for _ in gathered_parameters(self._engine.module, getattr(torch, self._config.model.dtype)):
                pass
        return time.monotonic() - began

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint; all ranks must call."""
        self._engine.save_checkpoint(folder, tag="learner", client_state={"version": self.version})

    def export(self, folder: str) -> None:
        """Write the policy in Hugging Face format (rank 0 writes, all ranks must call)."""
        whole = self._engine._zero3_consolidated_16bit_state_dict()
        if self._rank == 0:
            from transformers import AutoTokenizer

            Path(folder).mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.clone() for name, tensor in whole.items()}
            self._engine.module.save_pretrained(folder, state_dict=tensors)
            AutoTokenizer.from_pretrained(self._policy).save_pretrained(folder)

    def _share(self, rows: Sequence[TrainingRow]) -> list[MicroBatch]:
        settings = self._config.deepspeed
        plan = plan_micro_batches([len(r.token_ids) for r in rows], settings.ranks, settings.tokens_per_micro_batch)
        return [collate([rows[i] for i in batch], self._device) for batch in plan[self._rank]]

    def _set_lr(self) -> float:
        warmup = self._config.optim.warmup_updates
        lr = self._config.optim.lr * min(1.0, (self.version + 1) / warmup if warmup else 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _old_logprobs(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        with torch.no_grad():
            return [self._forward(batch)[0] for batch in batches]

    def _epoch(self, batches: Sequence[MicroBatch], old: Sequence[Tensor] | None) -> UpdateSums:
        """One optimizer step over all micro-batches."""
        sums = UpdateSums()
        for number, batch in enumerate(batches):
            # Gradients are reduced at the boundary only, and the flag must be set before the forward.
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            logprobs, entropy = self._forward(batch)
            old_logprobs = logprobs.detach() if old is None else old[number]
            losses, clipped = clipped_policy_gradient(
                logprobs, old_logprobs, batch.advantages[:, 1:], self._config.grpo.clip_low, self._config.grpo.clip_high
            )
            weights = truncated_importance(old_logprobs, batch.behaviour_logprobs[:, 1:], batch.importance_caps)
            loss = weighted_sum(losses * weights, batch.loss_weights[:, 1:])
            # DeepSpeed averages gradients over ranks; the loss is a sum over all of them.
            self._engine.backward(loss * self._config.deepspeed.ranks)
            sums = add_up([sums, self._sums(batch, logprobs.detach(), weights, entropy, clipped, float(loss))])
        self._engine.step()
        return sums

    def _forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """log pi and entropy of tokens 1.. of each row: (B, T - 1) both."""
        output = self._engine(input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False)
        logits = output.logits[:, :-1]
        return token_logprobs(logits, batch.token_ids[:, 1:], self._config.rollout.temperature)

    def _sums(
        self, batch: MicroBatch, logprobs: Tensor, weights: Tensor, entropy: Tensor, clipped: Tensor, loss: float
    ) -> UpdateSums:
        mask = batch.loss_mask[:, 1:]
        own = mask & batch.own_context & (batch.policy_versions[:, 1:] == self.version)
        difference = (logprobs - batch.behaviour_logprobs[:, 1:]).abs()[own]
        return UpdateSums(
            loss=loss,
            tokens=int(mask.sum()),
            forward_tokens=int(batch.attention_mask.sum()),
            entropy=float(entropy[mask].sum()),
            clipped=float(clipped[mask].sum()),
            importance=float(weights[mask].sum()),
            own_tokens=difference.numel(),
            own_abs_diff=float(difference.sum()),
            own_abs_diff_max=float(difference.max()) if difference.numel() else 0.0,
        )
