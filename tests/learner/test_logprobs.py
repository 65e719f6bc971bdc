"""Log-probs and entropy of known distributions, their gradients, and many logits in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learner import logprobs
from learner.logprobs import token_logprobs


def logs(*values: float) -> Tensor:
    return torch.tensor(values).log()


def test_logprobs_and_entropy_of_known_distributions() -> None:
    """A uniform one over four, (1/2, 1/4, 1/8, 1/8), and one that is certain."""
    probabilities = torch.tensor([[0.25] * 4, [0.5, 0.25, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0]])
    logits = probabilities.clamp(min=1e-30).log() + torch.tensor([[3.0], [-4.0], [0.0]])  # any constant added
    found, entropy = token_logprobs(logits, torch.tensor([2, 1, 0]), temperature=1.0)
    torch.testing.assert_close(found, logs(0.25, 0.25, 1.0))
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), 1.75 * math.log(2), 0.0]))


def test_a_temperature_divides_the_logits() -> None:
    """Logits log(4), 0 are 4/5 and 1/5; at temperature 2 they are log(2), 0: 2/3 and 1/3."""
    logits = torch.tensor([[math.log(4), 0.0]])
    for temperature, probability in ((1.0, 4 / 5), (2.0, 2 / 3)):
        found, entropy = token_logprobs(logits, torch.tensor([0]), temperature)
        rest = 1 - probability
        torch.testing.assert_close(found, logs(probability))
        expected = -probability * math.log(probability) - rest * math.log(rest)
        torch.testing.assert_close(entropy, torch.tensor([expected]))


def test_they_are_float32_whatever_the_logits_are_and_entropy_has_no_gradient_unless_asked() -> None:
    logits = torch.randn(6, 5, dtype=torch.bfloat16, requires_grad=True)
    for asked in (False, True):
        found, entropy = token_logprobs(logits, torch.zeros(6, dtype=torch.long), 1.0, entropy_gradient=asked)
        assert found.shape == entropy.shape == (6,)
        assert found.dtype == entropy.dtype == torch.float32
        assert (found.requires_grad, entropy.requires_grad) == (True, asked)
    with torch.no_grad():
        assert not token_logprobs(logits, torch.zeros(6, dtype=torch.long), 1.0, True)[1].requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_of_a_logprob_is_one_minus_the_probabilities(temperature: float) -> None:
    """Of (1/4, 3/4) at temperature T: (3/4, -3/4) / T."""
    logits = torch.tensor([[0.0, temperature * math.log(3)]], requires_grad=True)
    token_logprobs(logits, torch.tensor([0]), temperature)[0].sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.75]]) / temperature)


def test_the_gradient_of_the_entropy() -> None:
    """dH / dz_i = -p_i (log p_i + H). Of (1/4, 3/4): 3/16 log 3 and minus that."""
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    token_logprobs(logits, torch.tensor([0]), 1.0, entropy_gradient=True)[1].sum().backward()
    assert logits.grad is not None
    expected = 3 / 16 * math.log(3)
    torch.testing.assert_close(logits.grad, torch.tensor([[expected, -expected]]))


@pytest.mark.parametrize("chunk", [1, 7 * 30, 12 * 30])  # a position at a time; 50 positions by 7 and by 12
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_neither_values_nor_gradients(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(50, 30, generator=generator)).to(dtype).requires_grad_()
    tokens = torch.randint(0, 30, (50,), generator=generator)
    pulls = torch.randn(2, 50, generator=generator)

    def results() -> list[Tensor]:
        found, entropy = token_logprobs(logits, tokens, 0.7, entropy_gradient=True)
        return [found, entropy, *torch.autograd.grad((torch.stack([found, entropy]) * pulls).sum(), logits)]

    whole = results()
    monkeypatch.setattr(logprobs, "MANY", 0)
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    torch.testing.assert_close(results(), whole, rtol=1e-6, atol=1e-6)


def test_many_logits_are_not_kept_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps for the backward: a float32 copy of all logits where they are few, the logits alone else."""
    logits, tokens = torch.zeros(64, 1000, dtype=torch.bfloat16, requires_grad=True), torch.zeros(64, dtype=torch.long)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * (tensor.dtype == torch.float32))
        return tensor

    for many, expected in ((10**6, True), (1000, False)):
        monkeypatch.setattr(logprobs, "MANY", many)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            token_logprobs(logits, tokens, 0.5)
        assert (sum(kept) >= logits.numel()) == expected
