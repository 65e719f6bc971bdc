"""The loss of a whole batch: the papers' sums over streams, sequences and tokens, and any split of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.objectives import GrpoSettings
from configs.schema import RunConfig
from envs.trajectory import Credit, Group, Row, Segment, Stream, Ticket, Trajectory, Verdict
from learner.objective import batch_loss
from learner.rows import STREAMS, TrainingRow, training_rows
from tests.builders import answer, collated, ints, prompt

CPU = torch.device("cpu")


def random_groups(seed: int = 0) -> list[Group]:
    """Three groups of four conversations: a sketch of 1 to 3 tokens, then its solution of 1 to 6; random rewards."""
    rng = np.random.default_rng(seed)

    def sampled(tokens: int) -> Segment:
        said = answer(*rng.integers(10, 90, size=tokens).tolist())
        return replace(said, behaviour_logprobs=rng.normal(-2, 0.7, size=tokens).astype(np.float32))

    groups = []
    for index in range(3):
        trajectories, rows = [], []
        for number in range(4):
            turns = (prompt(1, 2), sampled(int(rng.integers(1, 4))), prompt(3), sampled(int(rng.integers(1, 7))))
            trajectories.append(Trajectory(turns, Verdict.WRONG, 0.0))
            first, second = rng.normal(size=2)
            credits = (
                Credit(1, 2, Stream.SKETCH, "sketches", float(first)),
                Credit(3, 4, Stream.SOLUTION, "solutions", float(second)),
            )
            rows.append(Row(number, 1, credits, ints(1, 2) if number == 3 else None, None))
        groups.append(Group(Ticket(index, "scripted", index), "sesa", tuple(trajectories), tuple(rows)))
    return groups


def run_config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"grpo": {"normalize_std": False, **settings}})


class Policies:
    """Log-probs of every trained token now, before the update, and under a reference: (M,) each, in row order."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        generator = torch.Generator().manual_seed(3)
        self.ends = np.cumsum([0, *(len(row.targets) for row in rows)])
        behaviour = torch.as_tensor(np.concatenate([row.behaviour_logprobs for row in rows]))
        noise = 0.3 * torch.randn(3, len(behaviour), generator=generator)
        self.old = behaviour + noise[0]
        self.current = (self.old + noise[1]).requires_grad_()
        self.reference = self.old + noise[2]
        self.entropy = 1 + noise.sum(0)
        self.chosen = torch.rand(len(behaviour), generator=generator) < 0.3

    def of(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        return torch.cat([values[self.ends[row] : self.ends[row + 1]] for row in rows])

    def result(self, rows: Sequence[TrainingRow], split: Sequence[Sequence[int]], config: RunConfig) -> list[Tensor]:
        """Loss and gradient of all micro-batches of `split`, which holds row numbers."""
        kl = config.grpo.kl.coefficient != 0
        losses = [
            batch_loss(
                collated([rows[i] for i in part]),
                self.of(self.current, part),
                self.of(self.entropy, part),
                self.of(self.old, part),
                self.of(self.reference, part) if kl else None,
                self.of(self.chosen, part),
                config.grpo,
            ).total
            for part in split
        ]
        total = torch.stack(losses).sum()
        return [total.detach(), torch.autograd.grad(total, self.current)[0]]


SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"clip_high": 0.28},
    "behaviour": {"old_policy": "behaviour", "dual_clip": 1.5},
    "gspo": {"objective": "gspo", "clip_low": 0.05, "clip_high": 0.1},
    "cispo": {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "token mask": {"importance": {"mode": "mask", "cap": 1.1}},
    "sequence truncate": {"importance": {"level": "sequence", "cap": 1.3}},
    "losses only": {"importance": {"of": "negative", "cap": 1.1}},
    "off-policy mask": {"importance": {"max_divergence": 0.1, "cap": None}},
    "k1": {"kl": {"coefficient": 0.5, "estimator": "k1"}, "epochs": 2},
    "k3": {"kl": {"coefficient": 0.5}},
    "bonus": {"entropy": {"name": "bonus", "coefficient": 0.2}},
    "kl_cov": {"entropy": {"name": "kl_cov"}, "epochs": 2},
}


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_of_a_batch_is_the_papers_sum(name: str, normalizer: str) -> None:
    streams = {"sketch": {"weight": 0.5, "clip_high": 0.15}}
    config = run_config(normalizer=normalizer, constant_length=8, streams=streams, **SETTINGS[name])
    rows = training_rows(random_groups(), config)
    policies = Policies(rows)
    loss, slopes = policies.result(rows, [range(len(rows))], config)
    expected = papers_sum(rows, policies, config.grpo)
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-5, atol=1e-6)
    expected_slopes = torch.autograd.grad(expected, policies.current)[0]
    assert expected_slopes.abs().max() > 1e-3
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*SETTINGS, "clip_cov"])
def test_a_split_into_micro_batches_and_the_order_of_rows_change_nothing(name: str) -> None:
    settings = {"entropy": {"name": "clip_cov"}} if name == "clip_cov" else SETTINGS[name]
    config = run_config(normalizer="sequence", **settings)
    rows = training_rows(random_groups(), config)
    policies, n = Policies(rows), len(rows)
    whole = policies.result(rows, [range(n)], config)
    assert whole[1].abs().max() > 1e-3
    for split in ([[i] for i in range(n)], [range(0, n, 2), range(1, n, 2)], [range(n - 1, -1, -1)]):
        torch.testing.assert_close(policies.result(rows, split, config), whole, rtol=1e-5, atol=1e-7)


def papers_sum(rows: Sequence[TrainingRow], policies: Policies, settings: GrpoSettings) -> Tensor:
    """The formulas once more, in float64 and in loops: over streams, their sequences, and the tokens of each."""
    parts = []
    for stream, name in enumerate(STREAMS):
        sequences = [
            (
                row,
                torch.as_tensor(np.flatnonzero(row.sequences == number) + int(policies.ends[r])),
                row.sequences == number,
            )
            for r, row in enumerate(rows)
            for number in range(int(row.sequences.max()) + 1)
            if row.streams[row.sequences == number][0] == stream
        ]
        own, tokens = getattr(settings.streams, name), sum(len(places) for _, places, _ in sequences)
        for row, places, inside in sequences:
            divisor = {
                "token": tokens,
                "sequence": len(sequences) * len(places),
                "constant": len(sequences) * (settings.constant_length or 0),
            }[settings.normalizer]
            low, high = settings.clip_low, own.clip_high or settings.clip_high
            losses = sequence_losses(row, places, inside, policies, settings, low, high)
            parts.append(own.weight * losses.sum() / divisor)
    return torch.stack(parts).sum()


def sequence_losses(
    row: TrainingRow, places: Tensor, inside: Any, policies: Policies, settings: GrpoSettings, low: float, high: float
) -> Tensor:
    current, old, reference = (x[places].double() for x in (policies.current, policies.old, policies.reference))
    behaviour = torch.as_tensor(row.behaviour_logprobs[inside]).double()
    advantage = torch.as_tensor(row.advantages[inside]).double()
    direct = settings.old_policy == "behaviour" and row.own_context
    anchor = behaviour if direct else old
    if settings.kl.estimator == "k1":
        advantage = advantage - settings.kl.coefficient * (old - reference)
    ratio = (current - anchor).exp()
    if settings.objective == "gspo":
        ratio = ratio.prod() ** (1 / len(ratio))
    clipped = ratio.clamp(1 - low, 1 + high)
    if settings.objective == "cispo":
        objective = clipped.detach() * advantage * current
    else:
        objective = torch.minimum(ratio * advantage, clipped * advantage)
        if settings.dual_clip is not None:
            objective = torch.where(advantage < 0, objective.maximum(settings.dual_clip * advantage), objective)
    weight = sequence_weight(row, (old - behaviour).exp(), direct, settings)
    if settings.importance.of == "negative":
        weight = torch.where(advantage < 0, weight, 1.0)
    objective = objective * weight
    limit = settings.importance.max_divergence
    if limit is not None and row.own_context and advantage[0] < 0 and (behaviour - current).mean() > limit:
        objective = objective * 0
    losses = -objective
    if settings.kl.coefficient and settings.kl.estimator == "k3":
        difference = reference - current
        losses = losses + settings.kl.coefficient * (difference.exp() - 1 - difference)
    if settings.entropy.name == "bonus":
        losses = losses - settings.entropy.coefficient * policies.entropy[places]
    if settings.entropy.name == "kl_cov":
        losses = losses + settings.entropy.coefficient * (current - anchor).abs() * policies.chosen[places]
    return losses


def sequence_weight(row: TrainingRow, ratio: Tensor, direct: bool, settings: GrpoSettings) -> Tensor:
    if direct or row.importance_cap is None:
        return torch.ones_like(ratio)
    if settings.importance.level == "sequence":
        ratio = ratio.prod().expand_as(ratio)
    beyond = row.importance_cap if settings.importance.mode == "truncate" else 0.0
    return torch.where(ratio > row.importance_cap, beyond, ratio)
