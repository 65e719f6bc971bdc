"""The learner on a CUDA device: bfloat16 ZeRO-3 with variable-length attention, against float32 on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.learner.ranks import Ranks, local_ray, random_rows, settings, tiny_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.real,
    pytest.mark.timeout(280),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = random_rows(24)
ON_GPU = {"rollout": {"gpus_per_actor": 1.0}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policies") / "policy")


def ranks(policy: Path, dtype: str, packing: bool) -> Ranks:
    deepspeed = {"gpus_per_rank": 1.0, "tokens_per_micro_batch": 512, "packing": packing}
    return Ranks(settings(1, deepspeed=deepspeed, model={"dtype": dtype}, **ON_GPU), policy)


@pytest.mark.parametrize("packing", [True, False], ids=["end to end", "padded"])
def test_bfloat16_has_about_the_gradient_of_float32(policy: Path, packing: bool) -> None:
    """End to end runs the flash kernel; its gradient is as near to float32 as bfloat16 is."""
    exact = ranks(policy, "float32", False)
    expected, _ = exact.gradients(ROWS)
    exact.stop()  # there may be one GPU
    half = ranks(policy, "bfloat16", packing)
    found, sums = half.gradients(ROWS)
    half.stop()
    assert sums.tokens == sum(len(row.targets) for row in ROWS)
    for name, gradient in expected.items():
        assert float((found[name].float() - gradient).norm() / gradient.norm()) <= 0.08, name


def test_updates_bring_the_loss_down(policy: Path) -> None:
    learner = ranks(policy, "bfloat16", True)
    losses = [learner.update(ROWS).loss for _ in range(5)]
    learner.stop()
    assert losses[-1] < losses[0]
