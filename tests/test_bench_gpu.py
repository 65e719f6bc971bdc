"""The GPU benchmark's arithmetic, and its way through the learner on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import keep, show
from tests.bench.gpu import SHAPES, Shape, measure_size
from tests.learner.ranks import local_ray

TINY = Shape(hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1, vocabulary=300)


def test_the_matrices_of_a_layer_by_hand() -> None:
    """q and o of 64 x 64, k and v of 64 x 32, three of 64 x 96; two layers."""
    assert TINY.layer_parameters == 2 * (2 * 4096 + 2 * 2048 + 3 * 6144)
    assert 0.35e9 < SHAPES["0.5B"].layer_parameters < 0.37e9
    assert 1.3e9 < SHAPES["1.5B"].layer_parameters < 1.32e9


def test_flops_of_a_token_by_hand() -> None:
    matrices, head = 2 * (2 * 4096 + 2 * 2048 + 3 * 6144), 64 * 300 / 2
    assert TINY.flops(length=100, trained_share=0.5) == 6 * (matrices + head) + 6 * 2 * 64 * 100


@pytest.mark.real
def test_the_way_through_the_learner() -> None:
    with local_ray():
        figures = measure_size(TINY, (64,), rounds=1, peak=1e12, on_gpu=False, tokens=256)
    speed, flops = figures["64"]["tokens_per_s"], TINY.flops(64, 0.5)
    assert speed > 0
    assert figures["64"]["model_flops_utilisation"] == pytest.approx(speed * flops / 1e12, rel=1e-2)


@pytest.mark.parametrize("peak", [989.0, None])
def test_its_figures_are_kept_and_shown(peak: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name, and of a device without a known peak no share of it."""
    figures = {"device": "NVIDIA H200", "peak_tflops": peak, "0.5B": {"512": {"model_flops_utilisation": peak}}}
    keep(tmp_path / "bench.json", "gpu", figures)
    assert json.loads((tmp_path / "bench.json").read_text())["gpu"].items() >= figures.items()
    show(figures, "")
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if len(line) > 40] == [
        "H200", str(peak), str(peak)
    ]  # fmt: skip
