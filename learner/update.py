"""One update of the policy on this rank: its share of micro-batches through forward, loss, backward, and the step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from configs.objectives import ClipCov, KlCov
from configs.schema import RunConfig
from configs.seeds import derive_seed
from learner.batches import MicroBatch, collate
from learner.logprobs import token_logprobs
from learner.measured import compared_sums, trained_sums
from learner.models import load_policy, load_reference, target_logits
from learner.objective import batch_loss, needs_old_pass
from learner.picking import picked_tokens
from learner.plan import plan_rows
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
            self._reference = zero3_reference(
                config, load_reference(config, kl.reference or policy, self.engine.module)
            )

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
        plan = plan_rows(rows, config.deepspeed)[self._rank]
        batches = [collate(rows, units, self._device) for units in plan]
        # With one step a batch the log-probs before it are the current ones: no forward is spent on them.
        old = self._logprobs(self.engine, batches) if needs_old_pass(config.grpo) else None
        chosen = None
        if isinstance(config.grpo.entropy, ClipCov | KlCov) and old is not None:
            seed = derive_seed(config.run.seed, version, "covariance")
            chosen = picked_tokens(rows, plan, old, config.grpo.entropy, seed)
        reference = self._reference_logprobs(batches)
        passes = [self._step(batches, old, reference, chosen, version) for _ in range(config.grpo.epochs)]
        # Figures are of the first pass, before any step; what is clipped, worked through and skipped, of all.
        return replace(
            passes[0],
            clipped=sum(p.clipped for p in passes) / len(passes),
            forward_tokens=sum(p.forward_tokens for p in passes),
            computed_tokens=sum(p.computed_tokens for p in passes),
            attended=sum(p.attended for p in passes),
            skipped_steps=sum(p.skipped_steps for p in passes),
            steps=sum(p.steps for p in passes),
            seconds=time.monotonic() - began,
            lr=lr,
        )

    def score(self, rows: Sequence[TrainingRow], version: int) -> UpdateSums:
        """Compare the engine's log-probs with the learner's, without training (the `own_*` sums)."""
        plan = plan_rows(rows, self._config.deepspeed)[self._rank]
        batches = [collate(rows, units, self._device) for units in plan]
        logprobs = self._logprobs(self.engine, batches)
        packing = self._config.deepspeed.packing
        return add_up([compared_sums(b, own, version, packing) for b, own in zip(batches, logprobs, strict=True)])

    def _forward(self, module: Any, batch: MicroBatch, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """log pi and entropy of the batch's trained tokens: (N,) both."""
        logits = target_logits(module, batch, self._config.deepspeed.packing)
        return token_logprobs(
            logits, batch.token_ids[batch.targets], self._config.rollout.temperature, entropy_gradient
        )

    def _logprobs(self, module: Any, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Without gradient and without dropout."""
        module.eval()
        with torch.no_grad():
            logprobs = [self._forward(module, batch)[0] for batch in batches]
        self.engine.train()
        return logprobs

    def _reference_logprobs(self, batches: Sequence[MicroBatch]) -> list[Tensor] | None:
        if not self._config.grpo.kl.coefficient:
            return None
        if self._reference is not None:
            return self._logprobs(self._reference, batches)
        with self.engine.module.disable_adapter():  # the policy without its adapters is the reference
            return self._logprobs(self.engine, batches)

    def _step(
        self, batches: Sequence[MicroBatch], old: Sequence[Tensor] | None, reference: Sequence[Tensor] | None,
        chosen: Sequence[Tensor] | None, version: int,
    ) -> UpdateSums:  # fmt: skip
        """One optimizer step over all micro-batches."""
        sums = []
        for number, batch in enumerate(batches):
            # Gradients are reduced at the boundary only, and the flag must be set before the forward.
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            logprobs, entropy = self._forward(self.engine, batch, self._config.grpo.entropy.name == "bonus")
            loss = batch_loss(
                batch, logprobs, entropy, logprobs.detach() if old is None else old[number],
                None if reference is None else reference[number], None if chosen is None else chosen[number],
                self._config.grpo,
            )  # fmt: skip
            total = float(loss.total)
            # DeepSpeed averages gradients over ranks; the loss is a sum over all of them. A loss that is no number
            # makes every gradient none, on all ranks: DeepSpeed then leaves out the step.
            self.engine.backward(loss.total * (self._config.deepspeed.ranks if isfinite(total) else nan))
            sums.append(trained_sums(batch, logprobs, entropy, loss, version, self._config.deepspeed.packing))
        self.engine.step()
        skipped = bool(self.optimizer.overflow)  # type: ignore[attr-defined]
        norm = nan if skipped else float(self.engine.get_global_grad_norm())
        return replace(add_up(sums), grad_norm=norm, steps=int(not skipped), skipped_steps=int(skipped))
