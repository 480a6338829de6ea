"""Plots of the benchmarks as SVG files: readable on white and on black, without a page around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["COLOURS", "Line", "draw_lines", "figure"]

#: Of series.
COLOURS = ("#4a80c8", "#d9622b", "#3a9a55", "#9a68b8")
_GREY = "#808890"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": _GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "grid.alpha": 0.35,
    "grid.color": _GREY,
    "legend.frameon": False,
    "legend.labelcolor": _GREY,
    "svg.fonttype": "none",
    "svg.hashsalt": "stillframe",
    "text.color": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


class Line(NamedTuple):
    """What is drawn: ``style`` is "line", "steps", "points", or "bars" between every two points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


@contextmanager
def figure(
    path: Path, width: float, height: float, columns: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of some inches, axes side by side, to draw in; then it is written."""
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height))
        yield drawn, list(drawn.subplots(1, columns, squeeze=False)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasSVG(drawn).print_svg(str(path), metadata={"Date": None})


def draw_lines(path: Path, lines: Sequence[Line], x_name: str, y_name: str) -> None:
    """Write a plot; the vertical axis begins at 0 and leaves out the highest 1% of the points."""
    top = float(np.quantile([y for line in lines for y in line.y], 0.99, method="lower"))
    with figure(path, 10, 4.2) as (drawn, (axes,)):
        for line, colour in zip(lines, COLOURS, strict=False):
            given: dict[str, Any] = {"color": colour, "label": line.name}
            if line.style == "points":
                axes.plot(line.x, line.y, ".", alpha=0.7, **given)
            elif line.style == "bars":
                axes.vlines(line.x[::2], line.y[::2], line.y[1::2], **given)
            else:
                drawstyle: Any = "steps-post" if line.style == "steps" else "default"
                axes.plot(line.x, line.y, drawstyle=drawstyle, **given)
        axes.set(xlabel=x_name, ylabel=y_name, ylim=(0, 1.08 * top))
        axes.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=len(lines))
