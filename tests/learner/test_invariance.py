"""On one ZeRO-3 rank and on two: however a batch is cut, packed, padded or ordered, its gradient is the same.

The reference is plain torch in this process, the whole batch padded into one forward.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.objectives import ClipCov, KlCov
from configs.schema import RunConfig
from configs.seeds import derive_seed
from learner.covariance import chosen_tokens
from learner.logprobs import token_logprobs
from learner.models import load_frozen, load_policy, target_logits
from learner.objective import batch_loss
from tests.builders import collated
from tests.learner.ranks import Gradients, Ranks, local_ray, random_rows, settings, tiny_policy

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]
CPU = torch.device("cpu")
ROWS = random_rows(24)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The policy and another one as its reference."""
    folder = tmp_path_factory.mktemp("policies")
    return tiny_policy(folder / "policy"), tiny_policy(folder / "reference", seed=1)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def ranks(request: pytest.FixtureRequest, policies: tuple[Path, Path]) -> Iterator[Ranks]:
    with local_ray():
        kl = {"coefficient": 0.1, "reference": str(policies[1])}
        yield Ranks(settings(request.param, grpo={"kl": kl}), policies[0])


def plain_gradients(config: RunConfig, policies: tuple[Path, Path]) -> tuple[Gradients, float]:
    """Gradients and loss of the whole batch in one padded forward of a module of transformers."""
    padded = config.model_copy(update={"deepspeed": config.deepspeed.model_copy(update={"packing": False})})
    model, batch = load_policy(padded, str(policies[0])), collated(ROWS)
    tokens = batch.token_ids[batch.targets]
    logprobs, entropy = token_logprobs(
        target_logits(model, batch, False), tokens, 1.0, config.grpo.entropy.name == "bonus"
    )
    old, reference, chosen = logprobs.detach(), None, None
    if config.grpo.kl.coefficient:
        with torch.no_grad():
            frozen = load_frozen(padded, str(policies[1]))
            reference = token_logprobs(target_logits(frozen, batch, False), tokens, 1.0)[0]
    if isinstance(config.grpo.entropy, ClipCov | KlCov):
        seed = derive_seed(config.run.seed, 0, "covariance")
        chosen = torch.as_tensor(chosen_tokens(old.numpy(), batch.advantages.numpy(), config.grpo.entropy, seed))
    loss = batch_loss(batch, logprobs, entropy, old, reference, chosen, config.grpo)
    loss.total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, float(loss.total.detach())


def assert_same(found: Gradients, expected: Gradients, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the gradient's norm, parameter by parameter."""
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert float(gradient.norm()) > 0
        assert float((found[name] - gradient).norm() / gradient.norm()) <= tolerance, name


OBJECTIVES: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "off-policy PPO, dual clip": {"old_policy": "behaviour", "dual_clip": 3.0, "clip_high": 0.28},
    "GSPO": {"objective": "gspo", "old_policy": "behaviour"},
    "CISPO": {"objective": "cispo", "old_policy": "behaviour", "streams": {"sketch": {"clip_high": 4.0}}},
    "sequence weights": {"importance": {"level": "sequence", "mode": "mask", "cap": 3.0}},
    "sequence mask": {"importance": {"max_divergence": 0.05}},
    "KL k3": {"kl": {"coefficient": 0.5}},
    "KL k2": {"kl": {"coefficient": 0.5, "estimator": "k2"}},
    "KL k1": {"kl": {"coefficient": 0.5, "estimator": "k1"}},
    "entropy bonus": {"entropy": {"name": "bonus", "coefficient": 0.1}},
    "Clip-Cov": {"entropy": {"name": "clip_cov", "share": 0.1, "low": 0.1, "high": 5.0}},
    "KL-Cov": {"entropy": {"name": "kl_cov", "share": 0.2}, "old_policy": "behaviour"},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_the_gradient_of_plain_torch(
    ranks: Ranks, policies: tuple[Path, Path], objective: str
) -> None:
    config = settings(
        ranks.config.deepspeed.ranks, grpo=OBJECTIVES[objective], deepspeed={"tokens_per_micro_batch": 512}
    )
    expected, loss = plain_gradients(config, policies)
    found, sums = ranks.gradients(ROWS, config)
    assert_same(found, expected)
    assert sums.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert sums.tokens == sum(len(row.targets) for row in ROWS)


@pytest.mark.parametrize("cut", ["one micro-batch", "many", "padded", "all padded"])
def test_micro_batches_packing_and_padding_change_nothing(ranks: Ranks, policies: tuple[Path, Path], cut: str) -> None:
    budget = 100_000 if cut in ("one micro-batch", "all padded") else 512
    grpo: dict[str, Any] = {"objective": "gspo", "old_policy": "behaviour"}
    config = settings(
        ranks.config.deepspeed.ranks,
        grpo=grpo,
        deepspeed={"tokens_per_micro_batch": budget, "packing": "padded" not in cut},
    )
    assert_same(ranks.gradients(ROWS, config)[0], plain_gradients(config, policies)[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_rows_changes_nothing(ranks: Ranks, policies: tuple[Path, Path], seed: int) -> None:
    grpo = {"entropy": {"name": "clip_cov", "share": 0.1, "low": 0.1, "high": 5.0}}
    config = settings(ranks.config.deepspeed.ranks, grpo=grpo, deepspeed={"tokens_per_micro_batch": 512})
    shuffled = random.Random(seed).sample(ROWS, len(ROWS))
    assert_same(ranks.gradients(shuffled, config)[0], plain_gradients(config, policies)[0])


def test_more_ranks_than_rows_stand_in(ranks: Ranks, policies: tuple[Path, Path]) -> None:
    """One row on two ranks: a stand-in runs forward and backward on the other and adds nothing."""
    config = settings(ranks.config.deepspeed.ranks)
    model, batch = load_policy(settings(deepspeed={"packing": False}), str(policies[0])), collated(ROWS[:1])
    logprobs, entropy = token_logprobs(target_logits(model, batch, False), batch.token_ids[batch.targets], 1.0)
    batch_loss(batch, logprobs, entropy, logprobs.detach(), None, None, config.grpo).total.backward()
    found, sums = ranks.gradients(ROWS[:1], config)
    assert_same(found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert sums.tokens == len(ROWS[0].targets)


def test_padding_of_attention_is_bounded(ranks: Ranks) -> None:
    config = settings(ranks.config.deepspeed.ranks, deepspeed={"tokens_per_micro_batch": 512})
    _, sums = ranks.gradients(ROWS, config)
    assert sums.forward_tokens == sum(len(row.token_ids) for row in ROWS)
    assert sums.computed_tokens < sums.forward_tokens  # some rows begin alike
    assert 1 - sums.computed_tokens / sums.attended <= 0.05
