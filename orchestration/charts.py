"""Line charts as inline SVG, coloured by the page's style (`grid`, `label`, `band`, `line-0`, `area-0`, ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 22
_MOST_POINTS = 300
_RAW_BESIDE_SMOOTH = 40  # points from which a moving average is drawn over the faint line of the values


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: `series` are (legend, values), values[i] belongs to whole number places[i], None leaves a gap."""

    title: str
    places: Sequence[int]
    series: Sequence[tuple[str, Sequence[float | None]]]
    axis: tuple[float, ...] = ()
    """Values the axis has to show: (0.0,) for counts and rates, (0.0, 1.0) for shares."""
    band: tuple[Sequence[float | None], Sequence[float | None]] | None = None
    """Lower and upper ends of an interval around the first series."""
    stacked: bool = False
    """Each series is drawn as an area on top of those before it."""

    def svg(self) -> str:
        """The chart as one `<svg>` element; text escaped."""
        columns = [values for _, values in self.series]
        lines = [self._points(values) for values in (piled(columns) if self.stacked else columns)]
        band = [self._points(values) for values in self.band or ()]
        drawn = [*lines, *band]
        xs, ys = [x for line in drawn for x, _ in line], [y for line in drawn for _, y in line]
        body = (
            self._body(lines, band, xs, ys)
            if xs
            else f'<text class="label" x="{_LEFT}" y="{HEIGHT // 2}">no values</text>'
        )
        name = escape(self.title)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>{body}</svg>'

    def _points(self, values: Sequence[float | None]) -> Points:
        """What can be drawn, thinned to a few hundred points by means of neighbours."""
        pairs = zip(self.places, values, strict=True)
        points = [(float(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]
        step = max(1, math.ceil(len(points) / _MOST_POINTS))
        return [_centre(points[i : i + step]) for i in range(0, len(points), step)]

    def _body(self, lines: Sequence[Points], band: Sequence[Points], xs: Sequence[float], ys: Sequence[float]) -> str:
        low, high = min(*self.axis, *ys, ys[0]), max(*self.axis, *ys, ys[0])
        if low == high:
            low, high = low - 0.5, high + 0.5
        y_ticks, x_ticks = ticks(low, high, 4), ticks(min(xs), max(xs), 5)
        scale = Scale(min(xs), max(xs), min(low, *y_ticks), max(high, *y_ticks))
        parts = [f'<path class="grid" d="M{_LEFT} {scale.y(y):.1f}H{WIDTH - _RIGHT}"/>' for y in y_ticks]
        parts += [_text(_LEFT - 6, scale.y(y) + 4, y, "end") for y in y_ticks]
        parts += [_text(scale.x(x), HEIGHT - 4, x, "middle") for x in x_ticks if x == int(x)]
        if band and band[0]:
            parts.append(_area(band[0], band[1], scale, "band"))
        if self.stacked:
            floors = [[(x, 0.0) for x, _ in lines[0]], *lines[:-1]]
            areas = zip(floors, lines, strict=True)
            return "".join([*parts, *(_area(low, high, scale, f"area-{i}") for i, (low, high) in enumerate(areas))])
        for i, line in enumerate(lines):
            smooth = len(line) >= _RAW_BESIDE_SMOOTH
            parts.append(_path(line, scale, f"line-{i}{' faint' if smooth else ''}"))
            if smooth:
                parts.append(_path(moving_average(line, len(line) // 12), scale, f"line-{i}"))
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to the chart's units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((value - self.x_low) / span if span else 0.5)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) in steps that cover [low, high] about `about` times."""
    if low == high:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def piled(columns: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Each column added to the ones before it; a place where one of them is missing is missing in all."""
    rows = zip(*columns, strict=True)
    sums = [[None] * len(row) if None in row else list(accumulate(row)) for row in rows]
    return [list(column) for column in zip(*sums, strict=True)] if sums else [[] for _ in columns]


def moving_average(points: Points, window: int) -> Points:
    """Each point with the mean of the `window` points on either side of it, fewer at the ends."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    averaged = []
    for i, (x, _) in enumerate(points):
        first, last = max(0, i - window), min(len(points), i + window + 1)
        averaged.append((x, (sums[last] - sums[first]) / (last - first)))
    return averaged


def short(value: float) -> str:
    """A number in few characters: 0.25, 12, 3.5k, 2M, 1e-05."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _centre(points: Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _path(points: Points, scale: Scale, classes: str) -> str:
    if not points:
        return ""
    if len(points) == 1:
        (x, y) = points[0]
        return f'<circle class="{classes}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.5"/>'
    steps = "L".join(f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in points)
    return f'<path class="{classes}" d="M{steps}"/>'


def _area(low: Points, high: Points, scale: Scale, classes: str) -> str:
    """What lies between two lines of the same places."""
    corners = [f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in [*high, *reversed(low)]]
    return f'<path class="{classes}" d="M{"L".join(corners)}Z"/>'


def _text(x: float, y: float, value: float, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{short(value)}</text>'
