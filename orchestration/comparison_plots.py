"""Pictures of a comparison: SVG without a background, in colours that can be read on white and on black."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, StrMethodFormatter

from configs.comparison import START, Mode
from learner.durable import replace_durably

# Of middling luminance; told apart by their line styles too. Method n has colour n, and style n moved on by one for
# each round of the colours, so that as many methods as colours times styles are all different.
COLOURS = ("#3579cc", "#c4601a", "#2e8b57", "#c0458f", "#8a63d2", "#8a7319", "#c8474c", "#198a94")
STYLES = ("-", "--", "-.", ":")
INK = "#757575"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "comparison", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.25,
    "legend.frameon": False,
}  # fmt: skip
AGAINST_TOKENS = {
    "success": "success, plain prompt",
    "coverage": "coverage, plain prompt",
    "entropy": "entropy at trained tokens, nats",
}
BY_K = ("pass", "coverage")
MODES = ("", *get_args(Mode))  # none: of the runs' own evaluation


def write_plots(document: Mapping[str, Any], stem: Path) -> list[Path]:
    """STEM-success.svg and so on, of what the document has values for; others of an earlier call are removed.

    Returns the paths of those there are. Raises OSError.
    """
    drawn = {f"{stem.name}-{name}.svg": _svg(draw) for name, draw in _pictures(document)}
    for name, data in drawn.items():
        replace_durably(stem.with_name(name), data)
    possible = {*AGAINST_TOKENS, *(_name_by_k(figure, mode) for figure in BY_K for mode in MODES)}
    for name in {f"{stem.name}-{name}.svg" for name in possible} - set(drawn):
        stem.with_name(name).unlink(missing_ok=True)
    return [stem.with_name(name) for name in drawn]


def _pictures(document: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[Axes], None]]]:
    for name, label in AGAINST_TOKENS.items():
        curves = {method: m["curves"][name] for method, m in document["methods"].items() if name in m["curves"]}
        if curves:
            yield name, partial(_against_tokens, document, curves, label)
    for figure in BY_K:
        for mode, lines in _by_k(document, figure).items():
            yield _name_by_k(figure, mode), partial(_draw_by_k, document, lines, figure)


def _name_by_k(figure: str, mode: str) -> str:
    return f"{figure}-at-k{'-' + mode if mode else ''}"


def _against_tokens(document: Mapping[str, Any], curves: Mapping[str, Any], label: str, axes: Axes) -> None:
    for i, method in enumerate(document["methods"]):
        if method in curves:
            _line(axes, i, method, document["grid_tokens"], curves[method])
    axes.set(xlabel="generated tokens", ylabel=label, xlim=(0, document["budget_tokens"]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _clip(axes, math.inf if label == AGAINST_TOKENS["entropy"] else 1.0)


def _by_k(document: Mapping[str, Any], figure: str) -> dict[str, dict[str, dict[int, Mapping[str, Any]]]]:
    """Mode of the final judge, empty for the runs' own evaluation -> method -> k -> interval; of several k only."""
    pattern = re.compile(rf"(?:(\w+)\.{figure}_at_(\d+)|{figure}_at_(\d+)_after)")
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for method, values in document["methods"].items():
        for name, value in values["figures"].items():
            if match := pattern.fullmatch(name):
                mode, k = match[1] or "", int(match[2] or match[3])
                found.setdefault(mode, {}).setdefault(method, {})[k] = value
    for mode, values in document["start"].items():
        for name, mean in values.items():
            if match := pattern.fullmatch(f"{mode}.{name}"):
                point = {"mean": mean, "low": None, "high": None}
                found.setdefault(mode, {}).setdefault(START, {})[int(match[2])] = point
    return {mode: lines for mode, lines in found.items() if any(len(line) > 1 for line in lines.values())}


def _draw_by_k(
    document: Mapping[str, Any], lines: Mapping[str, Mapping[int, Mapping[str, Any]]], figure: str, axes: Axes
) -> None:
    numbers = {method: i for i, method in enumerate(document["methods"])}
    for method, line in lines.items():
        ks = sorted(line)
        points = {part: [line[k][part] for k in ks] for part in ("mean", "low", "high")}
        _line(axes, numbers.get(method), method, ks, points)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="k", ylabel=f"{figure}@k")
    _clip(axes, 1.0)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _line(axes: Axes, number: int | None, label: str, xs: Any, points: Mapping[str, list[float | None]]) -> None:
    """A mean with its band; None leaves a gap. number: of the method in the document; the start has none."""
    numbers = {part: [float("nan") if v is None else v for v in values] for part, values in points.items()}
    colour, style = (INK, ":") if number is None else look(number)
    axes.plot(xs, numbers["mean"], color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.fill_between(xs, numbers["low"], numbers["high"], color=colour, alpha=0.18, linewidth=0)


def look(number: int) -> tuple[str, str]:
    """Colour and line style of a method."""
    return COLOURS[number % len(COLOURS)], STYLES[(number + number // len(COLOURS)) % len(STYLES)]


def _clip(axes: Axes, most: float) -> None:
    """Cut the axis at what a value can be: the interval of a few seeds may reach far beyond."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, most))


def _svg(draw: Callable[[Axes], None]) -> bytes:
    file = BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.legend(loc="best", fontsize=9)
        figure.savefig(file, transparent=True, format="svg", metadata={"Date": None})
    return file.getvalue()
