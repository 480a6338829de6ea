"""Plots as inline SVG: points, lines, intervals, two axes and a legend. Colours are the page's.

Series differ in colour and in the shape of their marks. Knows geometry, not what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from stillframe.evaluation.findings import Plot, Point, Series
from stillframe.untrusted.printable import html_text

__all__ = ["draw", "ticks"]

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 12, 46
_LEGEND_ROW = 20
_LETTER = 7.2  # width of a letter of the legend, about
_KINDS = 9  # colours of the page
_DENSE = 60  # from so many points on, marks are small and faint


class _Axis(NamedTuple):
    """From numbers ``low`` to ``high`` to places ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about so many, evenly spaced.

    Raises:
        ValueError: if ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"an axis runs from a lower number to a higher, got {low} to {high}")
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(f for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def draw(plot: Plot) -> str:
    """An ``<svg>`` element; empty if there is no point."""
    points = [p for series in plot.series for p in series.points]
    if not points:
        return ""
    legend = _legend(plot)
    height = _HEIGHT + _LEGEND_ROW * legend.count("<!--row-->")
    x = _axis([p.x for p in points], _LEFT, _WIDTH - _RIGHT)
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    y = _axis([*ys, *([plot.rule[0]] if plot.rule else [])], _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y), _rule(plot, y), *(_series(i, s, x, y) for i, s in enumerate(plot.series))]
    title = html_text(f"{plot.y} over {plot.x}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">'
        f"{''.join(parts)}{_titles(plot)}{legend}</svg>"
    )


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(low) * 0.1 or 1.0
    return _Axis(low - margin, high + margin, start, end)


def _label(value: float, step: float) -> str:
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if not (step / 10.0**-places + 1e-6) % 1 < 1e-5:
        places += 1
    return f"{value + 0.0:.{places}f}".replace("-", "−")


def _grid(x: _Axis, y: _Axis) -> str:
    parts = []
    bottom, left = _HEIGHT - _BOTTOM, _LEFT
    for axis, across in ((x, True), (y, False)):
        marks = ticks(axis.low, axis.high, 6 if across else 5)
        step = marks[1] - marks[0] if len(marks) > 1 else 1.0
        for value in marks:
            at, text = axis(value), _label(value, step)
            if across:
                parts.append(f'<path class="grid" d="M{at} {_TOP}V{bottom}"/>')
                parts.append(f'<text class="tick" x="{at}" y="{bottom + 16}">{text}</text>')
            else:
                parts.append(f'<path class="grid" d="M{left} {at}H{_WIDTH - _RIGHT}"/>')
                parts.append(f'<text class="tick y" x="{left - 7}" y="{at + 4}">{text}</text>')
    parts.append(f'<path class="axis" d="M{left} {_TOP}V{bottom}H{_WIDTH - _RIGHT}"/>')
    return "".join(parts)


def _titles(plot: Plot) -> str:
    middle, centre = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<text class="name" x="{middle}" y="{_HEIGHT - 10}">{html_text(plot.x)}</text>'
        f'<text class="name" transform="translate(15 {centre}) rotate(-90)">'
        f"{html_text(plot.y)}</text>"
    )


def _rule(plot: Plot, y: _Axis) -> str:
    if plot.rule is None:
        return ""
    at = y(plot.rule[0])
    return (
        f'<path class="rule" d="M{_LEFT} {at}H{_WIDTH - _RIGHT}"/>'
        f'<text class="tick rule-name" x="{_WIDTH - _RIGHT - 4}" y="{at - 5}">'
        f"{html_text(plot.rule[1])}</text>"
    )


def _series(index: int, series: Series, x: _Axis, y: _Axis) -> str:
    places = [(x(p.x), y(p.y)) for p in series.points]
    parts = []
    if series.line and len(places) > 1:
        path = "L".join(f"{a} {b}" for a, b in places)
        parts.append(f'<path class="line" d="M{path}"/>')
    for point, (a, _) in zip(series.points, places, strict=True):
        if point.low is not None and point.high is not None:
            parts.append(f'<path class="bar" d="M{a} {y(point.low)}V{y(point.high)}"/>')
    for point, (a, b) in zip(series.points, places, strict=True):
        name = f"{series.name}: {_told(point)}"
        parts.append(f"<g><title>{html_text(name)}</title>{_mark(index, a, b)}</g>")
    faint = " many" if len(places) >= _DENSE else ""
    return f'<g class="s{index % _KINDS}{faint}">{"".join(parts)}</g>'


def _told(point: Point) -> str:
    text = f"{point.y:.4g} at {point.x:.4g}"
    if point.low is None or point.high is None:
        return text
    return f"{text} [{point.low:.4g}, {point.high:.4g}]"


def _mark(index: int, x: float, y: float) -> str:
    """A disc, square, diamond or triangle."""
    if index % 4 == 0:
        return f'<circle class="mark" cx="{x}" cy="{y}" r="4"/>'
    shape = {
        1: f"M{x - 4} {y - 4}h8v8h-8z",
        2: f"M{x} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        3: f"M{x} {y - 5}l5 9h-10z",
    }[index % 4]
    return f'<path class="mark" d="{shape}"/>'


def _legend(plot: Plot) -> str:
    if len(plot.series) < 2:
        return ""
    parts, x, row = [], float(_LEFT), 0
    for index, series in enumerate(plot.series):
        width = 26 + _LETTER * len(series.name)
        if x > _LEFT and x + width > _WIDTH:
            x, row = float(_LEFT), row + 1
        if x == _LEFT:
            parts.append("<!--row-->")
        at = _HEIGHT + 4 + _LEGEND_ROW * row
        parts.append(
            f'<g class="s{index % _KINDS}">{_mark(index, x + 6, at)}</g>'
            f'<text class="key" x="{x + 15:.0f}" y="{at + 4}">{html_text(series.name)}</text>'
        )
        x += width
    return "".join(parts)
