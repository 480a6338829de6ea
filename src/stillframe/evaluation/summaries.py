"""Rows of a matrix, summed up: means over clips with intervals, tables, plots, videos to watch.

An infinite number (two videos that are the same have an infinite PSNR) has no mean and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from stillframe.detection.staleness import QUANTILES
from stillframe.evaluation.cells import Row
from stillframe.evaluation.findings import Plot, Point, Series, Table, VideoGroup, number, span
from stillframe.evaluation.matrix import Matrix
from stillframe.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    by_group,
    paired_difference,
)
from stillframe.evaluation.variants import FULL
from stillframe.jobs.report import DENOISING_STAGES
from stillframe.metrics import Metric, find_metric

__all__ = [
    "by_label",
    "difference",
    "digits",
    "failures",
    "flat",
    "gap",
    "gap_table",
    "measured",
    "metric_mean",
    "metric_plots",
    "metric_value",
    "over_clips",
    "quality_table",
    "signed",
    "speed_table",
    "split",
    "video_groups",
]

Value = Callable[[Row], float]
Rows = Sequence[Row]

_DIGITS = {"ssim": 4, "ms_ssim": 4, "lpips": 4, "tlpips": 4, "warp_error": 6, "psnr": 1, "vmaf": 1}


def digits(metric: str) -> int:
    """Digits after the point that a metric is read with."""
    return _DIGITS.get(metric, 2)


def metric_value(name: str) -> Value:
    """A row's number of a metric; nan where it has none, or an infinite one."""

    def value(row: Row) -> float:
        found = row.metrics.get(name, math.nan)
        return found if math.isfinite(found) else math.nan

    return value


def over_clips(rows: Iterable[Row], value: Value) -> Interval:
    """The mean over clips, with its interval; several rows of a clip are averaged first."""
    return bootstrap_mean(by_group((row.cell.clip, value(row)) for row in rows).values())


def metric_mean(rows: Iterable[Row], name: str) -> Interval:
    """A metric's mean over clips."""
    return over_clips(rows, metric_value(name))


def difference(a: Sequence[Row], b: Sequence[Row], value: Value) -> Interval:
    """The mean over clips of ``a - b`` where both edit the same, with its interval."""
    first: dict[Hashable, float] = {row.cell.on: value(row) for row in a}
    second: dict[Hashable, float] = {row.cell.on: value(row) for row in b}
    return paired_difference(first, second, {row.cell.on: row.cell.clip for row in a})


def signed(metric: Metric, interval: Interval) -> Interval:
    """A difference, turned so that more is better."""
    if metric.higher_is_better:
        return interval
    return Interval(-interval.mean, -interval.high, -interval.low, interval.size)


def gap(metric: Metric, a: Sequence[Row], b: Sequence[Row]) -> Interval:
    """The mean over clips of ``a - b`` in a metric, turned so that more is better."""
    return signed(metric, difference(a, b, metric_value(metric.name)))


def gap_table(
    caption: str, heads: str, metrics: Sequence[Metric], pairs: Mapping[str, tuple[Rows, Rows]]
) -> Table:
    """Gaps of pairs of rows by name, a column a metric."""
    body = [
        [name, *(span(gap(metric, *rows), digits(metric.name)) for metric in metrics)]
        for name, rows in pairs.items()
    ]
    return Table(caption, [heads, *(metric.name for metric in metrics)], body)


def measured(rows: Iterable[Row]) -> list[Metric]:
    """The metrics that any row has a number of, by name."""
    names = {name for row in rows for name in row.metrics}
    return [find_metric(name)() for name in sorted(names)]


def by_label(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows without an error by their variant's label, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.error is None:
            groups.setdefault(row.cell.variant.label, []).append(row)
    return groups


def failures(rows: Iterable[Row]) -> list[str]:
    """A sentence for each row that failed."""
    return [
        f"{row.cell.variant.label} on {row.cell.clip} failed: {row.error}"
        for row in rows
        if row.error is not None
    ]


def split(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of dense edits, and of the others, failures left out."""
    done = [row for row in rows if row.error is None]
    dense = [row for row in done if row.cell.variant == FULL]
    return dense, [row for row in done if row.cell.variant != FULL]


def quality_table(rows: Sequence[Row], caption: str) -> Table:
    """Every variant's metrics, mean and interval over clips."""
    kinds = measured(rows)
    heads = ["method", "clips", "computed", "stale p99.9 ↓"]
    heads += [f"{kind.name} {'↑' if kind.higher_is_better else '↓'}" for kind in kinds]
    body = []
    for label, group in by_label(rows).items():
        cells = [label, str(len({row.cell.clip for row in group}))]
        cells.append(f"{over_clips(group, lambda row: row.kept_share).mean:.0%}")
        stale = over_clips(group, lambda row: row.staleness.get("p99.9", math.nan)).mean
        cells.append("" if math.isnan(stale) else number(stale, 1))
        for kind in kinds:
            cells.append(span(metric_mean(group, kind.name), digits(kind.name)))
        body.append(cells)
    return Table(caption, heads, body)


def speed_table(rows: Sequence[Row], caption: str) -> Table:
    """Every variant's frames a second and speedups; rows of paired cells only."""
    body = []
    for label, group in by_label(rows).items():
        body.append(
            [
                label,
                f"{over_clips(group, lambda row: row.kept_share).mean:.0%}",
                number(over_clips(group, lambda row: row.fps).mean),
                number(over_clips(group, lambda row: row.full_fps).mean),
                span(over_clips(group, lambda row: row.speedup("total"))),
                span(over_clips(group, lambda row: row.speedup(*DENOISING_STAGES))),
            ]
        )
    heads = ("method", "computed", "FPS", "FPS dense", "speedup, all", "speedup, denoising")
    return Table(caption, heads, body)


def metric_plots(rows: Sequence[Row], dense: Sequence[Row] = ()) -> list[Plot]:
    """For each metric, its mean over the share of tokens computed, a line for every family.

    Args:
        rows: of variants at several rates.
        dense: rows of the dense edits, whose mean becomes a horizontal line.
    """
    plots = []
    for kind in measured(rows):
        series = [Series(*family, line=True) for family in _families(rows, kind.name)]
        plain = metric_mean(dense, kind.name).mean
        better = "higher" if kind.higher_is_better else "lower"
        plots.append(
            Plot(
                f"{kind.name}: {kind.summary}. Mean over clips, bars are 95% intervals; {better} "
                f"is better, and further left is less work.",
                "share of tokens computed",
                kind.name,
                series,
                None if math.isnan(plain) else (plain, "dense"),
            )
        )
    return plots


def _families(rows: Sequence[Row], metric: str) -> list[tuple[str, list[Point]]]:
    families: dict[str, list[Point]] = {}
    for group in by_label(rows).values():
        x = over_clips(group, lambda row: row.kept_share).mean
        point = Point.of(x, metric_mean(group, metric))
        families.setdefault(group[0].cell.variant.family, []).append(point)
    return [(name, sorted(points)) for name, points in families.items()]


def video_groups(matrix: Matrix, rows: Iterable[Row], most: int = 2) -> list[VideoGroup]:
    """Source, dense edit, edits and maps of the first few clips, side by side."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.error is None:
            groups.setdefault(row.cell.on, []).append(row)
    shown = []
    for (clip, prompt, _, conditioning), group in list(groups.items())[:most]:
        videos = [("source", matrix.source_video(clip))]
        for row in sorted(group, key=lambda row: row.cell.variant != FULL):
            videos.append((row.cell.variant.label, row.videos["edit"]))
        maps = [row for row in group if "map" in row.videos]
        if maps:
            videos.append((f"computed by {maps[0].cell.variant.label}", maps[0].videos["map"]))
        how = "" if conditioning is None else f", {conditioning}"
        shown.append(VideoGroup(f"{clip}, “{prompt}”{how}", videos))
    return shown


def flat(row: Row, metric_names: Sequence[str]) -> Mapping[str, Any]:
    """A row as one line of a table file: plain values under fixed columns."""
    cell, params = row.cell, dict(row.cell.variant.params)
    return {
        "method": cell.variant.method,
        "label": cell.variant.label,
        "rate": params.get("rate"),
        "recovery": params.get("recovery"),
        "clip": cell.clip,
        "prompt": cell.prompt,
        "seed": cell.seed,
        "conditioning": cell.conditioning,
        "paired": cell.paired,
        "kept_share": row.kept_share,
        "moved_share": row.moved_share,
        "frames": row.frames,
        "width": row.width,
        "height": row.height,
        "fps": row.fps,
        "full_fps": row.full_fps,
        "seconds_total": row.seconds.get("total", math.nan),
        "seconds_denoising": sum(row.seconds.get(s, 0.0) for s in DENOISING_STAGES),
        "speedup_total": row.speedup("total"),
        "speedup_denoising": row.speedup(*DENOISING_STAGES),
        "cache_bytes": row.cache_bytes,
        "recovery_bytes": row.recovery_bytes,
        **{f"worst_{name}": row.worst_patch.get(name, math.nan) for name in ("p99", "p99.9")},
        **{f"stale_{name}": row.staleness.get(name, math.nan) for name in (*QUANTILES, "max")},
        **{name: row.metrics.get(name, math.nan) for name in metric_names},
        "error": row.error,
    }
