"""How the parts of the loss fit together, by hand; test_papers_sum.py has whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.objectives import GrpoSettings
from learner.batches import MicroBatch
from learner.objective import Loss, batch_loss, needs_old_pass
from learner.rows import STREAMS, TrainingRow
from tests.builders import collated

OFF_POLICY = {"old_policy": "behaviour"}


def grpo(**settings: Any) -> GrpoSettings:
    return GrpoSettings.model_validate(settings)


def logs(*values: float) -> Tensor:
    return torch.tensor(values).log()


def micro_batch(advantages: Sequence[float], behaviour: Tensor, cap: float | None = None, **row: Any) -> MicroBatch:
    """One row of trained tokens: one sequence of the stream `solution`, loss weights of 1, but for what `row` says."""
    n = len(advantages)
    fields: dict[str, Any] = {
        "token_ids": np.arange(n + 1, dtype=np.int32),
        "targets": np.arange(1, n + 1, dtype=np.int32),
        "sequences": np.zeros(n, np.int32),
        "streams": np.zeros(n, np.int32),
        "behaviour_logprobs": behaviour.numpy(),
        "policy_versions": np.zeros(n, np.int32),
        "advantages": np.array(advantages, np.float32),
        "loss_weights": np.ones(n, np.float32),
        "own_context": True,
        "importance_cap": cap,
    }
    return collated([TrainingRow(**{"group": 0} | fields | row)])


def loss_and_gradient(batch: MicroBatch, current: Tensor, old: Tensor, **settings: Any) -> tuple[Loss, Tensor]:
    """No reference, no chosen tokens, no entropy."""
    current = current.clone().requires_grad_()
    loss = batch_loss(batch, current, torch.zeros_like(old), old, None, None, grpo(**settings))
    return loss, torch.autograd.grad(loss.total, current)[0]


# --- one part at a time, by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
def test_before_the_first_step_the_gradient_is_the_plain_policy_gradient(objective: str) -> None:
    """-A w for every token, whatever the objective; the loss of the ratio objectives is -sum of A w."""
    batch = micro_batch([2.0, 2.0], logs(0.5, 0.5), loss_weights=np.array([0.25, 0.25], np.float32))
    old = logs(0.5, 0.25)
    loss, slopes = loss_and_gradient(batch, old, old, objective=objective)
    torch.testing.assert_close(slopes, torch.tensor([-0.5, -0.5]))
    expected = math.log(8) / 2 if objective == "cispo" else -1.0
    assert loss.total.item() == pytest.approx(expected)
    assert not loss.clipped.any()
    assert (loss.importance.tolist(), loss.kl.tolist(), loss.left_out.any().item()) == ([1, 1], [0, 0], False)


def test_gspo_by_hand() -> None:
    """Sequence 0 has ratios 2 and 1/2: s = 1. Sequence 1 has ratio 2 alone: s = 2, clipped at 1.2.

    Weights 1/4, 1/4 and 1/2: L = -(1 A_0 / 2 + 1.2 A_1 / 2) with A = 1 and 3. The clipped one has no gradient.
    """
    batch = micro_batch(
        [1.0, 1.0, 3.0],
        torch.zeros(3),
        sequences=np.array([0, 0, 1], np.int32),
        loss_weights=np.array([0.25, 0.25, 0.5], np.float32),
    )
    loss, slopes = loss_and_gradient(batch, logs(0.5, 0.125, 0.5), logs(0.25, 0.25, 0.25), objective="gspo")
    assert loss.total.item() == pytest.approx(-(0.5 + 1.8))
    torch.testing.assert_close(slopes, torch.tensor([-0.25, -0.25, 0.0]))  # -s A / (S length)
    assert loss.clipped.tolist() == [False, False, True]


def test_streams_have_their_own_clip_ranges() -> None:
    batch = micro_batch([1.0] * 3 + [-1.0] * 3, torch.zeros(6), streams=np.array([0, 1, 2] * 2, np.int32))
    current, old = logs(*[0.9] * 3, *[0.1] * 3), logs(*[0.1] * 3, *[0.9] * 3)
    streams = {"sketch": {"clip_low": 0.4}, "branch": {"clip_low": 0.5, "clip_high": 1.0}}
    assert [str(stream) for stream in STREAMS] == ["solution", "sketch", "branch"]
    loss, _ = loss_and_gradient(batch, current, old, clip_high=0.3, streams=streams)
    assert loss.total.item() == pytest.approx(-1.3 - 1.3 - 2.0 + 0.8 + 0.6 + 0.5)


def test_decoupled_ppo_clips_against_the_learner_and_corrects_for_the_engine() -> None:
    """behaviour 0.2, old 0.4, now 0.5: ratio 1.25 is clipped to 1.2, times old / behaviour = 2 (cap 1.5: 1.5)."""
    for cap, weight in ((4.0, 2.0), (1.5, 1.5), (None, 1.0)):
        loss, _ = loss_and_gradient(micro_batch([1.0], logs(0.2), cap), logs(0.5), logs(0.4))
        assert loss.total.item() == pytest.approx(-1.2 * weight)
        assert loss.importance.item() == pytest.approx(weight)


def test_good_answers_may_be_spared_the_weight() -> None:
    """behaviour 0.4, old and now 0.1: a bad answer counts a quarter, a good one in full."""
    for advantage, weight in ((1.0, 1.0), (-1.0, 0.25), (0.0, 1.0)):
        batch = micro_batch([advantage], logs(0.4), 4.0)
        loss, _ = loss_and_gradient(batch, logs(0.1), logs(0.1), importance={"of": "negative"})
        assert [loss.importance.item(), loss.total.item()] == pytest.approx([weight, -advantage * weight])


def test_against_the_engine_no_weight_is_applied() -> None:
    """behaviour 0.4, now 0.44: the ratio is 1.1, whatever the learner said before the update."""
    loss, slopes = loss_and_gradient(micro_batch([1.0], logs(0.4), 4.0), logs(0.44), logs(0.1), **OFF_POLICY)
    assert [loss.total.item(), slopes.item()] == pytest.approx([-1.1, -1.1])
    assert loss.importance.item() == 1


def test_under_another_context_the_ratio_is_against_the_learner_in_both_ways() -> None:
    """And corrected where the row has a cap of its own."""
    for settings in ({}, OFF_POLICY):
        batch = micro_batch([1.0], logs(0.2), 1.5, own_context=False)
        loss, _ = loss_and_gradient(batch, logs(0.5), logs(0.4), **settings)
        assert loss.total.item() == pytest.approx(-1.2 * 1.5)


def test_bad_sequences_far_off_policy_leave_the_policy_gradient() -> None:
    """Mean log(behaviour / pi) is log 4: beyond 1. Not under another context, where behaviour says nothing."""
    behaviour, current = logs(0.8, 0.8), logs(0.2, 0.2)
    settings = {"importance": {"max_divergence": 1.0, "cap": None}, "entropy": {"name": "bonus", "coefficient": 1.0}}
    for own, left_out in ((True, True), (False, False)):
        batch = micro_batch([-1.0, -1.0], behaviour, own_context=own)
        loss = batch_loss(batch, current, torch.tensor([1.0, 2.0]), current, None, None, grpo(**settings))
        assert loss.left_out.tolist() == [left_out] * 2
        assert loss.total.item() == pytest.approx((0 if left_out else 2) - 3)  # the bonus is not left out


@pytest.mark.parametrize(
    ("estimator", "total", "slope"),
    [("k2", -1 + 0.5 * math.log(2) ** 2 / 2, -1 + 0.5 * math.log(2)), ("k3", -1 + 0.5 * (math.log(2) - 0.5), -0.75)],
)
def test_k2_and_k3_are_terms_of_the_loss(estimator: str, total: float, slope: float) -> None:
    """pi = 1/2, reference 1/4, coefficient 1/2, A = 1."""
    loss, slopes = loss_with_reference(estimator, logs(0.5))
    assert [loss.total.item(), slopes.item()] == pytest.approx([total, slope])
    assert not loss.kl.requires_grad


def test_k1_is_taken_off_the_advantage() -> None:
    """A = 1 - log(2) / 2 of the policy before the update; the reported KL is the current one's, log(3)."""
    loss, slopes = loss_with_reference("k1", logs(0.75))
    expected = -1.2 * (1 - math.log(2) / 2)
    assert [loss.total.item(), slopes.item()] == pytest.approx([expected, 0.0])  # the ratio of 3/2 is clipped
    assert loss.kl.item() == pytest.approx(math.log(3))


def loss_with_reference(estimator: str, current: Tensor) -> tuple[Loss, Tensor]:
    settings = grpo(kl={"coefficient": 0.5, "estimator": estimator})
    current = current.requires_grad_()
    loss = batch_loss(micro_batch([1.0], logs(0.5)), current, torch.zeros(1), logs(0.5), logs(0.25), None, settings)
    return loss, torch.autograd.grad(loss.total, current)[0]


def test_an_entropy_bonus_counts_as_the_tokens_do() -> None:
    entropy = torch.tensor([1.0, 3.0], requires_grad=True)
    batch = micro_batch([0.0, 0.0], torch.zeros(2), loss_weights=np.array([0.5, 0.25], np.float32))
    settings = grpo(entropy={"name": "bonus", "coefficient": 0.1})
    loss = batch_loss(batch, torch.zeros(2), entropy, torch.zeros(2), None, None, settings)
    assert loss.total.item() == pytest.approx(-0.1 * (0.5 + 0.75))
    torch.testing.assert_close(torch.autograd.grad(loss.total, entropy)[0], torch.tensor([-0.05, -0.025]))


def test_clip_cov_takes_the_gradient_of_chosen_tokens_and_leaves_their_kl() -> None:
    settings = grpo(entropy={"name": "clip_cov"}, kl={"coefficient": 1.0, "estimator": "k2"})
    current, chosen = logs(0.5, 0.5).requires_grad_(), torch.tensor([True, False])
    batch = micro_batch([1.0, 1.0], torch.zeros(2))
    loss = batch_loss(batch, current, torch.zeros(2), logs(0.5, 0.5), logs(0.25, 0.25), chosen, settings)
    slopes = torch.autograd.grad(loss.total, current)[0]
    torch.testing.assert_close(slopes, torch.tensor([math.log(2), math.log(2) - 1]))
    assert loss.total.item() == pytest.approx(-2 + math.log(2) ** 2)


@pytest.mark.parametrize("old_policy", ["proximal", "behaviour"])
def test_kl_cov_holds_chosen_tokens_to_where_their_ratio_is_from(old_policy: str) -> None:
    """|log(0.5 / 0.8)| and its slope of -1, twice; the other token is free. The ratio is 0.5 / 0.8 for both."""
    behaviour, old = (logs(0.1, 0.1), logs(0.8, 0.8)) if old_policy == "proximal" else (logs(0.8, 0.8), logs(0.1, 0.1))
    settings = grpo(entropy={"name": "kl_cov", "coefficient": 2.0}, epochs=2, old_policy=old_policy)
    current, chosen = logs(0.5, 0.5).requires_grad_(), torch.tensor([True, False])
    loss = batch_loss(micro_batch([1.0, 1.0], behaviour), current, torch.zeros(2), old, None, chosen, settings)
    slopes = torch.autograd.grad(loss.total, current)[0]
    assert loss.total.item() == pytest.approx(-2 * 0.625 + 2 * math.log(1.6))
    torch.testing.assert_close(slopes, torch.tensor([-0.625 - 2, -0.625]))


def test_a_stand_in_adds_nothing_and_has_a_gradient() -> None:
    batch = collated([])
    for settings in ({}, {"objective": "gspo"}, {"objective": "cispo"}, {"importance": {"max_divergence": 0.1}}):
        loss, slopes = loss_and_gradient(batch, logs(0.3), logs(0.3), **settings)
        assert (loss.total.item(), slopes.item()) == (0, 0)


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_far_off_policy_nothing_is_lost_to_infinities(objective: str, level: str, mode: str) -> None:
    """Log-ratios of +-100 to the engine and to the learner before the update, both signs of A, all bounds in place."""
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])
    old = torch.full((8,), -100.0)
    batch = micro_batch(signs[:, 0].tolist(), old + 100 * signs[:, 1], 2.0, sequences=np.arange(8, dtype=np.int32))
    settings: dict[str, Any] = {"objective": objective, "dual_clip": None if objective == "cispo" else 3.0}
    settings["importance"] = {"level": level, "mode": mode, "max_divergence": 1.0}
    for old_policy in ("proximal", "behaviour"):
        current = old + 100 * signs[:, 2]
        loss, slopes = loss_and_gradient(batch, current, old, **settings, old_policy=old_policy)
        assert math.isfinite(loss.total.item())
        assert slopes.isfinite().all()


def test_which_settings_need_the_policy_before_the_update() -> None:
    assert [
        needs_old_pass(grpo(**settings))
        for settings in (
            {},
            OFF_POLICY,
            {"entropy": {"name": "bonus"}},
            {"epochs": 2},
            {"entropy": {"name": "clip_cov"}},
            {"entropy": {"name": "kl_cov"}, **OFF_POLICY},
        )
    ] == [False, False, False, True, True, True]
