"""Plots as inline SVG, drawn by matplotlib: points, lines, intervals, two axes and a legend.

Series differ in colour and in the shape of their marks. Colours are variables of the page's style
sheet, so that plots follow its light or dark theme.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from stillframe.evaluation.findings import Plot, Point, Series
from stillframe.untrusted.printable import printable

__all__ = ["draw"]

_WIDTH, _HEIGHT, _LEGEND_ROW = 8.9, 4.8, 0.32  # inches
_LEGEND_LETTERS = 74  # of a row of the legend, about
_DENSE = 60  # from so many points on, marks are small and faint
_MARKS = "osD^"
# matplotlib takes colours, not variables: stand-ins, which nothing else in a file looks like
_SERIES = {f"#010{index}0{index}": f"var(--c{index})" for index in range(9)}
_INK, _SOFT, _LINE = "#020101", "#020202", "#020303"
_VARIABLES = {**_SERIES, _INK: "var(--ink)", _SOFT: "var(--soft)", _LINE: "var(--line)"}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _SOFT,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.labelcolor": _SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 13.0,
    "grid.color": _LINE,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}


def draw(plot: Plot, place: str = "") -> str:
    """An ``<svg>`` element; empty if there is no point.

    Args:
        plot: what to draw; the same text for the same plot.
        place: on the page; ids of elements differ from those at other places.
    """
    finite = [s._replace(points=_finite(s.points)) for s in plot.series]
    plot = plot._replace(series=[series for series in finite if series.points])
    if not plot.series:
        return ""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{place} {plot}"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        axes = figure.add_subplot()
        _label(axes, plot)
        for index, series in enumerate(plot.series):
            _add(axes, index, series)
        if len(plot.series) > 1:
            _legend(figure, axes, plot)
        return _inline(_svg(figure), plot)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]


def _label(axes: Axes, plot: Plot) -> None:
    axes.grid(clip_on=False)
    axes.set_xlabel(printable(plot.x))
    axes.set_ylabel(printable(plot.y))
    if plot.rule is not None:
        height, name = plot.rule
        axes.axhline(height, color=_INK, linestyle="--", linewidth=1, clip_on=False)
        axes.annotate(
            printable(name),
            (1, height),
            (-4, 4),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            color=_SOFT,
        )


def _add(axes: Axes, index: int, series: Series) -> None:
    color = list(_SERIES)[index % len(_SERIES)]
    is_dense = len(series.points) >= _DENSE
    for point in series.points:
        if math.isfinite(point.low):
            ends = [point.low, point.high]
            axes.plot([point.x] * 2, ends, color=color, alpha=0.55, clip_on=False)
    x, y = [p.x for p in series.points], [p.y for p in series.points]
    if series.line:
        axes.plot(x, y, color=color, linewidth=2, clip_on=False)
    (marks,) = axes.plot(
        x,
        y,
        color=color,
        linestyle="",
        marker=_MARKS[index % len(_MARKS)],
        markersize=3 if is_dense else 6,
        alpha=0.4 if is_dense else 1,
        clip_on=False,
    )
    marks.set_gid(_gid(index))


def _gid(index: int) -> str:
    return f"series {index}"


def _legend(figure: Figure, axes: Axes, plot: Plot) -> None:
    names = [printable(series.name) for series in plot.series]
    columns = max(1, _LEGEND_LETTERS // (max(map(len, names)) + 6))
    marks = [line for line in axes.lines if str(line.get_gid()).startswith("series")]
    # names are filled in later: matplotlib leaves out those that begin with an underscore
    legend = figure.legend(marks, ["-"] * len(marks), loc="outside lower left", ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    figure.set_figheight(_HEIGHT + _LEGEND_ROW * -(-len(names) // columns))


def _svg(figure: Figure) -> str:
    """The file as matplotlib writes it."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has others
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    return file.getvalue()


def _inline(text: str, plot: Plot) -> str:
    """An element of an HTML page: no namespaces, no ids of groups, the page's colours, and every
    point's numbers where the mouse points at it."""
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    root = ElementTree.fromstring(text)
    groups = {group.attrib.pop("id", ""): group for group in root.iter("g")}
    for index, series in enumerate(plot.series):
        uses = groups[_gid(index)].iter("use")
        for point, use in zip(series.points, uses, strict=True):
            ElementTree.SubElement(use, "title").text = _tooltip(series.name, point)
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", printable(f"{plot.y} over {plot.x}"))
    drawn = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    for color, variable in _VARIABLES.items():
        drawn = drawn.replace(color, variable)
    return drawn


def _tooltip(name: str, point: Point) -> str:
    text = printable(f"{name}: {point.y:.4g} at {point.x:.4g}")
    return text if math.isnan(point.low) else f"{text} [{point.low:.4g}, {point.high:.4g}]"
