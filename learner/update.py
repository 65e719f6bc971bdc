"""One update of the policy on this rank: its share of micro-batches through forward, loss, backward, and the step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from configs.objectives import ClipCov, KlCov
from configs.schema import RunConfig
from configs.seeds import derive_seed
from learner.batches import MicroBatch, collate, plan_micro_batches
from learner.covariance import chosen_tokens
from learner.logprobs import token_logprobs
from learner.models import load_frozen, load_policy, target_logits
from learner.objective import Loss, batch_loss, needs_old_pass
from learner.rows import TrainingRow
from learner.schedule import learning_rate
from learner.update_sums import UpdateSums, add_up
from learner.zero3 import zero3_engine, zero3_reference


class PolicyLearner:
    """The policy under ZeRO-3 with its optimizer, and a frozen reference where a KL term needs one.

    Every rank holds the same rows and plans all shares alike: normalisers and numbers of forwards need no messages.
    """

    def __init__(self, config: RunConfig, policy: str, rank: int, device: torch.device) -> None:
        self._config, self._rank, self._device = config, rank, device
        self.engine, self.optimizer = zero3_engine(config, load_policy(config, policy))
        self._reference: Any = None
        kl = config.grpo.kl
        if kl.coefficient and (kl.reference or config.model.lora is None):
            self._reference = zero3_reference(config, load_frozen(config, kl.reference or policy))

    def update(self, rows: Sequence[TrainingRow], version: int) -> UpdateSums:
        """grpo.epochs optimizer steps on the rows, on all ranks at once. A step without a finite gradient is skipped.

        version: updates done so far.
        """
        began = time.monotonic()
        config = self._config
        # Dropout of adapters is the only draw; it depends on nothing but the run's seed and the update.
        torch.manual_seed(derive_seed(config.run.seed, version, f"learner rank {self._rank}"))
        lr = learning_rate(config.optim, version, config.run.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        plan = self._plan(rows)
        batches = self._collate(rows, plan)
        # With one step a batch the log-probs before it are the current ones: no forward is spent on them.
        old = self._logprobs(self.engine, batches) if needs_old_pass(config.grpo) else None
        chosen = self._chosen(rows, plan, old, version) if old is not None else None
        reference = self._reference_logprobs(batches)
        passes = [self._step(batches, old, reference, chosen, version) for _ in range(config.grpo.epochs)]
        # Figures are of the first pass, before any step; what is clipped, worked through and skipped, of all.
        return replace(
            passes[0],
            clipped=sum(p.clipped for p in passes) / len(passes),
            forward_tokens=sum(p.forward_tokens for p in passes),
            attended=sum(p.attended for p in passes),
            skipped_steps=sum(p.skipped_steps for p in passes),
            steps=sum(p.steps for p in passes),
            seconds=time.monotonic() - began,
            lr=lr,
        )

    def score(self, rows: Sequence[TrainingRow], version: int) -> UpdateSums:
        """Compare the engine's log-probs with the learner's, without training (the `own_*` sums)."""
        batches = self._collate(rows, self._plan(rows))
        logprobs = self._logprobs(self.engine, batches)
        return add_up([self._compared(batch, own, version) for batch, own in zip(batches, logprobs, strict=True)])

    def _plan(self, rows: Sequence[TrainingRow]) -> list[list[int]]:
        """Row numbers of this rank's micro-batches."""
        settings = self._config.deepspeed
        lengths = [len(row.token_ids) for row in rows]
        return plan_micro_batches(lengths, settings.ranks, settings.tokens_per_micro_batch)[self._rank]

    def _collate(self, rows: Sequence[TrainingRow], plan: Sequence[Sequence[int]]) -> list[MicroBatch]:
        return [collate([rows[i] for i in batch], self._device) for batch in plan]

    def _forward(self, module: Any, batch: MicroBatch, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """log pi and entropy of the batch's trained tokens: (N,) both."""
        logits = target_logits(module, batch, self._config.deepspeed.packing)
        return token_logprobs(
            logits, batch.token_ids[batch.targets], self._config.rollout.temperature, entropy_gradient
        )

    def _logprobs(self, module: Any, batches: Sequence[MicroBatch]) -> list[Tensor]:
        with torch.no_grad():
            return [self._forward(module, batch)[0] for batch in batches]

    def _reference_logprobs(self, batches: Sequence[MicroBatch]) -> list[Tensor] | None:
        if not self._config.grpo.kl.coefficient:
            return None
        if self._reference is not None:
            return self._logprobs(self._reference, batches)
        with self.engine.module.disable_adapter():  # the policy without its adapters is the reference
            return self._logprobs(self.engine, batches)

    def _chosen(
        self, rows: Sequence[TrainingRow], plan: Sequence[Sequence[int]], old: Sequence[Tensor], version: int
    ) -> list[Tensor] | None:
        """Which tokens Clip-Cov or KL-Cov picks, (N,) of each micro-batch; covariances are of the whole batch."""
        settings = self._config.grpo.entropy
        if not isinstance(settings, ClipCov | KlCov):
            return None
        ends = np.cumsum([0, *(len(row.targets) for row in rows)])
        places = [
            torch.cat([torch.arange(ends[i], ends[i + 1], device=self._device) for i in batch])
            if batch else torch.empty(0, dtype=torch.long, device=self._device)
            for batch in plan
        ]  # fmt: skip
        whole = torch.zeros(int(ends[-1]), device=self._device)
        for place, logprobs, batch in zip(places, old, plan, strict=True):
            if batch:
                whole[place] = logprobs
        dist.all_reduce(whole)
        advantages = np.concatenate([row.advantages for row in rows])
        seed = derive_seed(self._config.run.seed, version, "covariance")
        picked = torch.as_tensor(chosen_tokens(whole.cpu().numpy(), advantages, settings, seed), device=self._device)
        return [picked[p] if len(p) else picked.new_zeros(len(o)) for p, o in zip(places, old, strict=True)]

    def _step(
        self,
        batches: Sequence[MicroBatch],
        old: Sequence[Tensor] | None,
        reference: Sequence[Tensor] | None,
        chosen: Sequence[Tensor] | None,
        version: int,
    ) -> UpdateSums:
        """One optimizer step over all micro-batches."""
        sums = []
        for number, batch in enumerate(batches):
            # Gradients are reduced at the boundary only, and the flag must be set before the forward.
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            logprobs, entropy = self._forward(self.engine, batch, self._config.grpo.entropy.name == "bonus")
            loss = batch_loss(
                batch,
                logprobs,
                entropy,
                logprobs.detach() if old is None else old[number],
                None if reference is None else reference[number],
                None if chosen is None else chosen[number],
                self._config.grpo,
            )
            total = float(loss.total)
            # DeepSpeed averages gradients over ranks; the loss is a sum over all of them. A loss that is no number
            # makes every gradient none, on all ranks: DeepSpeed then leaves out the step.
            self.engine.backward(loss.total * (self._config.deepspeed.ranks if isfinite(total) else nan))
            sums.append(self._sums(batch, logprobs.detach(), entropy.detach(), loss, version))
        self.engine.step()
        skipped = bool(self.optimizer.overflow)  # type: ignore[attr-defined]
        norm = nan if skipped else float(self.engine.get_global_grad_norm())
        return replace(add_up(sums), grad_norm=norm, steps=int(not skipped), skipped_steps=int(skipped))

    def _sums(
        self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor, loss: Loss, version: int
    ) -> UpdateSums:
        if not batch.rows:
            return UpdateSums()
        columns = (entropy, loss.clipped, loss.importance, loss.kl, loss.left_out)
        total, entropies, clipped, importance, kl, left_out = torch.stack(
            [loss.total.detach(), *(column.detach().float().sum() for column in columns)]
        ).tolist()
        return replace(
            self._compared(batch, logprobs, version),
            loss=total,
            tokens=len(batch.targets),
            entropy=entropies,
            clipped=clipped,
            importance=importance,
            kl=kl,
            left_out=left_out,
        )

    def _compared(self, batch: MicroBatch, logprobs: Tensor, version: int) -> UpdateSums:
        """The engine's log-probs against the learner's, of tokens sampled under this version in their own context."""
        if not batch.rows:
            return UpdateSums()
        own = batch.own_context & (batch.policy_versions == version)
        difference = (logprobs - batch.behaviour_logprobs).abs()[own]
        padded = max(batch.lengths) * len(batch.lengths)
        return UpdateSums(
            forward_tokens=len(batch.token_ids),
            attended=batch.layout.attended if self._config.deepspeed.packing else padded,
            own_tokens=difference.numel(),
            own_abs_diff=float(difference.sum()),
            own_abs_diff_max=float(difference.max()) if difference.numel() else 0.0,
        )
