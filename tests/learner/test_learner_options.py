"""What settings make of the learner: memory savers that change nothing, adapters, steps that are skipped, epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from configs.schema import RunConfig
from learner.rows import TrainingRow
from tests.learner.ranks import VOCABULARY, Gradients, Ranks, local_ray, random_rows, settings, tiny_policy

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]
ROWS = random_rows(12)
BUDGET = {"tokens_per_micro_batch": 512}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policies") / "policy")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def two_updates(policy: Path, cluster: None) -> Gradients:
    """The weights after two updates on two ranks, without any of the options."""
    return after_two_updates(settings(2, deepspeed=BUDGET), policy)[0]


def after_two_updates(config: RunConfig, policy: Path) -> tuple[Gradients, list[float]]:
    ranks = Ranks(config, policy)
    losses = [ranks.update(ROWS).loss for _ in range(2)]
    weights = ranks.weights()
    ranks.stop()
    return weights, losses


def largest_difference(found: Gradients, expected: Gradients) -> float:
    return max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"offload": "optimizer"}, {"offload": "all"}], ids=str
)
def test_what_saves_memory_changes_nothing(options: dict[str, Any], policy: Path, two_updates: Gradients) -> None:
    weights, _ = after_two_updates(settings(2, deepspeed=BUDGET | options), policy)
    assert largest_difference(weights, two_updates) <= 1e-6


def test_bfloat16_learns_nearly_the_same(policy: Path) -> None:
    config = settings(2, deepspeed=BUDGET, model={"dtype": "bfloat16"}, optim={"lr": 1e-3})
    exact = settings(2, deepspeed=BUDGET, optim={"lr": 1e-3})
    half, losses = after_two_updates(config, policy)
    full, expected = after_two_updates(exact, policy)
    assert losses == pytest.approx(expected, rel=0.1, abs=0.02)
    assert largest_difference(half, full) <= 0.03  # bfloat16 holds a weight of 1 to 0.004


# --- adapters --------------------------------------------------------------------------------------------------------


def test_adapters_alone_are_trained_and_whole_weights_come_out(policy: Path, tmp_path: Path) -> None:
    """KL to the policy without its adapters is 0 at first; what is sent and exported is as of a plain model."""
    lora = {"lora": {"rank": 4, "alpha": 8.0}}
    config = settings(2, model=lora, deepspeed=BUDGET, grpo={"kl": {"coefficient": 0.1}})
    ranks = Ranks(config, policy)
    before = ranks.weights()
    gradients, first = ranks.gradients(ROWS)
    assert gradients
    assert all(".lora_" in name for name in gradients)
    assert first.kl == 0.0
    ranks.update(ROWS)
    after = ranks.weights()
    ranks.all("export", str(tmp_path / "policy"))
    second = ranks.update(ROWS)
    ranks.stop()
    assert largest_difference(loaded(tmp_path / "policy"), after) == 0
    assert second.kl > 0.0
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.endswith("proj.weight")}
    assert {name: tuple(t.shape) for name, t in before.items()} == shapes(policy)


def test_adapters_and_gradient_checkpointing_go_together(policy: Path) -> None:
    lora = {"lora": {"rank": 4, "alpha": 8.0}}
    plain = Ranks(settings(1, model=lora), policy)
    saving = Ranks(settings(1, model=lora, deepspeed={"gradient_checkpointing": True}), policy)
    plain.update(ROWS)
    saving.update(ROWS)
    assert largest_difference(saving.weights(), plain.weights()) <= 1e-6
    plain.stop()
    saving.stop()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"lora": {"targets": "q_proj, no_such_module"}}}, ("model.lora.targets", "no_such_module")),
        ({"grpo": {"kl": {"coefficient": 1, "reference": "/nowhere"}}}, ("grpo.kl.reference (/nowhere)", "loaded")),
    ],
)
def test_what_cannot_be_trained_is_said(changes: dict[str, Any], words: tuple[str, ...], policy: Path) -> None:
    with pytest.raises(ray.exceptions.RayTaskError) as refusal:
        Ranks(settings(1, **changes), policy)
    last = str(refusal.value).strip().splitlines()[-1]
    assert all(word in last for word in words), last


def test_a_reference_of_other_tokens_is_said(policy: Path, tmp_path: Path) -> None:
    kl = {"coefficient": 1, "reference": str(tiny_policy(tmp_path / "other", vocab_size=VOCABULARY + 1))}
    with pytest.raises(ray.exceptions.RayTaskError, match=r"grpo\.kl\.reference .* has 97 tokens, the policy 96"):
        Ranks(settings(1, grpo={"kl": kl}), policy)


def test_a_model_with_a_short_window_asks_for_padding(tmp_path: Path) -> None:
    sliding = tiny_policy(tmp_path / "sliding", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    with pytest.raises(ray.exceptions.RayTaskError, match=r"set deepspeed\.packing=false"):
        Ranks(settings(1), sliding)


def loaded(policy: Path) -> Gradients:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    return {name: p.detach() for name, p in model.named_parameters()}


def shapes(policy: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in loaded(policy).items()}


# --- steps without a finite gradient ---------------------------------------------------------------------------------


def poisoned(rows: list[TrainingRow], advantage: float) -> list[TrainingRow]:
    """The last row's advantages replaced."""
    *rest, last = rows
    return [*rest, replace(last, advantages=np.full(len(last.targets), advantage, np.float32))]


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_without_a_finite_gradient_is_skipped_on_all_ranks(count: int, policy: Path) -> None:
    """Weights stay as they were, and the next step is as if nothing had been."""
    ranks, fresh = Ranks(settings(count, deepspeed=BUDGET), policy), Ranks(settings(count, deepspeed=BUDGET), policy)
    before = ranks.weights()
    for bad in (float("nan"), float("inf")):
        sums = ranks.update(poisoned(ROWS, bad))
        assert (sums.steps, sums.skipped_steps) == (0, 1)
        assert not np.isfinite(sums.grad_norm)
        assert largest_difference(ranks.weights(), before) == 0
    good, expected = ranks.update(ROWS), fresh.update(ROWS)
    assert (good.steps, good.skipped_steps) == (1, 0)
    assert good.loss == expected.loss
    assert largest_difference(ranks.weights(), fresh.weights()) == 0
    ranks.stop()
    fresh.stop()


def test_a_loss_that_is_no_number_is_skipped_where_its_gradient_would_be_finite(policy: Path) -> None:
    """An infinite weight on an advantage of zero: the loss is nan, and no parameter would have noticed by itself."""
    ranks = Ranks(settings(1), policy)
    *rest, last = ROWS
    m = len(last.targets)
    bad = replace(last, advantages=np.zeros(m, np.float32), loss_weights=np.full(m, np.inf, np.float32))
    sums = ranks.update([*rest, bad])
    assert (sums.steps, sums.skipped_steps) == (0, 1)
    ranks.stop()


# --- nothing to train ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grpo", [{}, {"entropy": {"name": "clip_cov"}}], ids=["plain", "Clip-Cov"])
def test_a_batch_without_a_trained_token_is_gone_through_on_all_ranks(grpo: dict[str, Any], policy: Path) -> None:
    ranks = Ranks(settings(2, grpo=grpo), policy)
    before = ranks.weights()
    sums = ranks.update([])
    assert (sums.tokens, sums.loss, sums.grad_norm) == (0, 0.0, 0.0)
    assert largest_difference(ranks.weights(), before) == 0
    assert ranks.update(ROWS).steps == 1
    ranks.stop()


# --- epochs ----------------------------------------------------------------------------------------------------------


def test_each_epoch_is_a_step_against_the_policy_before_the_update(policy: Path) -> None:
    """Ratios move away from 1 with the second step only, and many are clipped at this rate."""
    once, twice = (Ranks(settings(1, grpo={"epochs": n}), policy) for n in (1, 2))
    one, two = once.update(ROWS), twice.update(ROWS)
    assert (one.steps, two.steps) == (1, 2)
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    assert one.clipped == 0 < two.clipped
    assert two.forward_tokens == 2 * one.forward_tokens
    once.stop()
    twice.stop()
