"""The loss by hand, and its gradients against every way of cutting a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from configs.schema import GrpoSettings
from envs.trajectory import Group
from learner.batches import MicroBatch, collate, plan_micro_batches
from learner.losses import clipped_policy_gradient, token_logprobs, truncated_importance, weighted_sum
from learner.rows import TrainingRow, training_rows
from tests.builders import parallel_group

INF = float("inf")
CPU = torch.device("cpu")


def logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios]).log()


# --- log-probs and entropy -------------------------------------------------------------------------------------------


def test_logprobs_and_entropy_of_known_distributions() -> None:
    """A uniform one over four, (1/2, 1/4, 1/8, 1/8), and one that is certain."""
    probabilities = torch.tensor([[[0.25] * 4, [0.5, 0.25, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0]]])
    logits = probabilities.clamp(min=1e-30).log() + torch.tensor([[[3.0], [-4.0], [0.0]]])  # any constant added
    logprobs, entropy = token_logprobs(logits, torch.tensor([[2, 1, 0]]), temperature=1.0)
    torch.testing.assert_close(logprobs, logs(0.25, 0.25, 1.0))
    torch.testing.assert_close(entropy, torch.tensor([[math.log(4), 1.75 * math.log(2), 0.0]]))


def test_a_temperature_divides_the_logits() -> None:
    """Logits log(4), 0 are 4/5 and 1/5; at temperature 2 they are log(2), 0: 2/3 and 1/3."""
    logits = torch.tensor([[[math.log(4), 0.0]]])
    for temperature, probability in ((1.0, 4 / 5), (2.0, 2 / 3)):
        logprobs, entropy = token_logprobs(logits, torch.tensor([[0]]), temperature)
        rest = 1 - probability
        torch.testing.assert_close(logprobs, logs(probability))
        expected = -probability * math.log(probability) - rest * math.log(rest)
        torch.testing.assert_close(entropy, torch.tensor([[expected]]))


def test_logprobs_are_float32_whatever_the_logits_are_and_entropy_has_no_gradient() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long), 1.0)
    assert logprobs.shape == entropy.shape == (2, 3)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert (logprobs.requires_grad, entropy.requires_grad) == (True, False)


def test_the_gradient_of_a_logprob_is_one_minus_the_probabilities() -> None:
    logits = torch.tensor([[[0.0, math.log(3)]]], requires_grad=True)  # 1/4, 3/4
    token_logprobs(logits, torch.tensor([[0]]), 1.0)[0].sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.75, -0.75]]]))


# --- the clipped objective -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # clip_low 0.2, clip_high 0.3; the gradient is of the loss by the log-prob: -ratio * A, or 0 behind the clip
        (1.0, 2.0, -2.0, False, -2.0),
        (1.2, 2.0, -2.4, False, -2.4),
        (1.5, 2.0, -2.6, True, 0.0),  # the gain is capped at 1.3 * A
        (0.5, 2.0, -1.0, False, -1.0),  # a good token made less likely is not clipped
        (1.0, -2.0, 2.0, False, 2.0),
        (0.9, -2.0, 1.8, False, 1.8),
        (0.5, -2.0, 1.6, True, 0.0),  # the gain is capped at 0.8 * A
        (1.5, -2.0, 3.0, False, 3.0),  # a bad token made more likely is not clipped
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: bool, gradient: float) -> None:
    old = torch.tensor([[-1.5]])
    logprobs = (old + math.log(ratio)).requires_grad_()
    losses, active = clipped_policy_gradient(logprobs, old, torch.tensor([[advantage]]), 0.2, 0.3)
    assert losses.item() == pytest.approx(loss, rel=1e-5)
    assert active.item() is clipped
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-5)


# --- importance ------------------------------------------------------------------------------------------------------


def test_importance_is_truncated_at_the_cap_of_its_row() -> None:
    old = torch.tensor([[0.5, 1.0, 3.0], [0.5, 1.0, 3.0]]).log()
    weights = truncated_importance(old, torch.zeros(2, 3), torch.tensor([[2.0], [0.75]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0, 2.0], [0.5, 0.75, 0.75]]))


def test_an_infinite_cap_corrects_nothing_not_even_what_overflows() -> None:
    old, behaviour = torch.tensor([[0.0, -9.0, 0.0]]), torch.tensor([[-5.0, 0.0, -1e9]])
    torch.testing.assert_close(truncated_importance(old, behaviour, torch.tensor([[INF]])), torch.ones(1, 3))


def test_importance_is_a_constant_to_the_gradient() -> None:
    old = logs(0.5).requires_grad_()
    assert not truncated_importance(old, logs(1.0), torch.tensor([[2.0]])).requires_grad


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_sum_by_hand() -> None:
    losses, weights = torch.tensor([[1.0, 2.0], [3.0, 1e6]]), torch.tensor([[0.5, 0.25], [0.125, 0.0]])
    assert weighted_sum(losses, weights).item() == 1.375


class Bigrams:
    """A model of (V, V) logits by the token before: positions do not matter, so that padding could only do harm."""

    def __init__(self, vocabulary: int = 20) -> None:
        generator = torch.Generator().manual_seed(0)
        self.old = torch.randn(vocabulary, vocabulary, generator=generator)
        self.weights = (self.old + 0.3 * torch.randn(vocabulary, vocabulary, generator=generator)).requires_grad_()

    def loss(self, batch: MicroBatch) -> Tensor:
        """The loss of one micro-batch, put together as the learner does."""
        tokens = batch.token_ids[:, 1:]
        logprobs, _ = token_logprobs(self.weights[batch.token_ids][:, :-1], tokens, 0.8)
        old, _ = token_logprobs(self.old[batch.token_ids][:, :-1], tokens, 0.8)
        losses, _ = clipped_policy_gradient(logprobs, old, batch.advantages[:, 1:], 0.2, 0.2)
        importance = truncated_importance(old, batch.behaviour_logprobs[:, 1:], batch.importance_caps)
        return weighted_sum(losses * importance, batch.loss_weights[:, 1:])

    def gradient(self, batches: list[MicroBatch]) -> Tensor:
        return torch.autograd.grad(sum((self.loss(batch) for batch in batches), torch.zeros(())), self.weights)[0]


def batch_of_groups() -> list[Group]:
    return [
        parallel_group(1, 0, 0.5, tokens=[3, 9, 1]),
        parallel_group(0, 1, index=1, tokens=[6, 2]),
        parallel_group(-0.5, 0.25, 1, 0, index=2, tokens=[1, 4, 8, 5]),
    ]


def split(rows: list[TrainingRow], ranks: int, budget: int) -> list[MicroBatch]:
    plan = plan_micro_batches([len(row.token_ids) for row in rows], ranks, budget)
    return [collate([rows[i] for i in batch], CPU) for share in plan for batch in share]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("budget", [1, 13, 30, 1000])
def test_gradients_do_not_depend_on_micro_batches_ranks_or_padding(ranks: int, budget: int) -> None:
    """The cap of 0.05 truncates some of the ratios and leaves others."""
    rows, model = training_rows(batch_of_groups(), GrpoSettings(importance_cap=0.05)), Bigrams()
    whole = model.gradient([collate(rows, CPU)])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(model.gradient(split(rows, ranks, budget)), whole, rtol=1e-4, atol=1e-8)


def test_what_is_not_trained_has_no_gradient() -> None:
    """Other tokens in the padding and behind an answer, other advantages outside of answers: nothing changes."""
    rows, model = training_rows(batch_of_groups(), GrpoSettings(importance_cap=0.05)), Bigrams()
    batch = collate(rows, CPU)
    whole = model.gradient([batch])
    generator = torch.Generator().manual_seed(1)
    padding = batch.attention_mask == 0
    junk = torch.randint(0, 20, batch.token_ids.shape, generator=generator)
    batch.token_ids[padding] = junk[padding]
    batch.advantages[~batch.loss_mask] = 9.0
    torch.testing.assert_close(model.gradient([batch]), whole)
    assert whole[torch.tensor([1, 2])].abs().max() == 0  # the prompt's own tokens are predicted from 1 and 2


def test_the_loss_of_the_policy_that_sampled_is_the_formula() -> None:
    """Ratios of 1: L = -sum of A over T. A is (2/3, -1/3, -1/3) for 1, 2 and 3 tokens: -(2/3 - 2/3 - 1) / 6."""
    settings = GrpoSettings(normalize_std=False, importance_cap=None)
    rows, model = training_rows([parallel_group(1, 0, 0, tokens=[1, 2, 3])], settings), Bigrams()
    model.weights = model.old.clone().requires_grad_()
    assert model.loss(collate(rows, CPU)).item() == pytest.approx(1 / 6, rel=1e-5)
