"""What an experiment found, as words, tables, plots and videos that any page can show.

Plain data: no pixels, no HTML, no arithmetic but the rounding of numbers for reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stillframe.evaluation.statistics import Interval

__all__ = ["Findings", "Plot", "Point", "Series", "Table", "VideoGroup", "number", "span"]


class Table(NamedTuple):
    """A table, its cells as they will be read.

    Attributes:
        caption: what to see in it.
        columns: heads; the first column names the row.
        rows: cells.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Point(NamedTuple):
    """A point of a plot; ``low`` and ``high`` are the ends of y's interval, nan without one."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, x: float, y: Interval) -> Point:
        """A mean and its interval; a mean that is nan is not drawn."""
        return cls(x, y.mean, y.low, y.high)


class Series(NamedTuple):
    """Points of one kind; ``line`` connects them in order of x."""

    name: str
    points: Sequence[Point]
    line: bool = False


class Plot(NamedTuple):
    """A plot of y over x; ``rule`` is a horizontal line with a label, such as a yardstick."""

    caption: str
    x: str
    y: str
    series: Sequence[Series]
    rule: tuple[float, str] | None = None


class VideoGroup(NamedTuple):
    """Videos of one clip to watch beside each other: label and path relative to the page."""

    caption: str
    videos: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """What came out of one experiment.

    Attributes:
        name: of the experiment.
        title: a few words.
        question: what it asks, in a sentence or two.
        headline: what came out, in one sentence.
        papers: what the papers report of the same, if they do.
        words: further sentences.
        caveats: what it cannot show, and why.
        missing: what was left out and why, one sentence each.
        tables, plots, videos: to look at.
        rows: the numbers behind it that are no edits, one mapping a row, for a CSV file.
    """

    name: str
    title: str
    question: str
    headline: str
    papers: str = ""
    words: Sequence[str] = ()
    caveats: Sequence[str] = ()
    missing: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    videos: Sequence[VideoGroup] = ()
    rows: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


def number(value: float | None, digits: int = 2) -> str:
    """A number for reading; a dash where there is none."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    # + 0: what rounds to zero has no sign
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def span(interval: Interval, digits: int = 2) -> str:
    """A mean and its interval for reading: ``1.20 [1.10, 1.31]``."""
    if math.isnan(interval.low):
        return number(interval.mean, digits)
    ends = f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"
    return f"{number(interval.mean, digits)} {ends}"
