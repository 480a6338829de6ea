"""A plot of lines and points as an SVG file that needs no page around it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from stillframe.evaluation.plots import ticks

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 300, 62, 44, 30
_COLOURS = ("#3b6fb6", "#c2452d", "#3a8a4d", "#8a5aa8")


class Line(NamedTuple):
    """What is drawn: ``style`` is "line", "steps", "points", or "bars" between every two points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


def draw_lines(path: Path, lines: Sequence[Line], x_name: str, y_name: str) -> None:
    """Write a plot; the vertical axis begins at 0 and leaves out the highest 1 % of the points."""
    ys = sorted(y for line in lines for y in line.y)
    top = 1.08 * ys[int(0.99 * (len(ys) - 1))]
    xs = [x for line in lines for x in line.x]
    low, high = min(xs), max(max(xs), min(xs) + 1e-9)

    def across(x: float) -> float:
        return round(_LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - 12), 1)

    def up(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - min(y, top) / top * (_HEIGHT - _BOTTOM - _TOP), 1)

    parts = [_axes(low, high, top, across, up, x_name, y_name)]
    for index, line in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(_mark(line, places, colour))
        parts.append(
            f'<text x="{_LEFT + 8 + 230 * index}" y="18" fill="{colour}">{escape(line.name)}</text>'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n",
        encoding="utf-8",
    )


def _mark(line: Line, places: Sequence[tuple[float, float]], colour: str) -> str:
    if line.style == "points":
        return "".join(
            f'<circle cx="{x}" cy="{y}" r="2.2" fill="{colour}" fill-opacity="0.7"/>'
            for x, y in places
        )
    if line.style == "bars":
        pairs = zip(places[::2], places[1::2], strict=True)
        path = "".join(f"M{x} {low}V{high}" for (x, low), (_, high) in pairs)
        return f'<path d="{path}" stroke="{colour}" stroke-width="1.6"/>'
    path = f"M{places[0][0]} {places[0][1]}"
    for x, y in places[1:]:
        path += f"H{x}V{y}" if line.style == "steps" else f"L{x} {y}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _axes(
    low: float, high: float, top: float, across: object, up: object, x_name: str, y_name: str
) -> str:
    assert callable(across)
    assert callable(up)
    bottom, parts = _HEIGHT - _BOTTOM, []
    for value in ticks(low, high, 8):
        parts.append(
            f'<text x="{across(value)}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
        )
    for value in ticks(0, top, 5):
        parts.append(f'<path d="M{_LEFT} {up(value)}H{_WIDTH - 12}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{up(value) + 4}" text-anchor="end">{value:g}</text>'
        )
    middle = (_LEFT + _WIDTH) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text transform="translate(14 {bottom / 2 + 20}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    return "".join(parts)
