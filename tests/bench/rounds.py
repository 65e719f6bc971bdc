"""How figures are taken: cases in turn, round after round, so that what else the machine does meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every case once a round, after one round that is not counted; each returns its figure."""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, measure in cases.items():
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def ratio(ours: list[float], other: list[float]) -> float:
    """The median over rounds of ours / other."""
    return median(a / b for a, b in zip(ours, other, strict=True))


def rounded(value: float) -> float:
    """Four significant figures: more says nothing here."""
    return float(f"{value:.4g}")
