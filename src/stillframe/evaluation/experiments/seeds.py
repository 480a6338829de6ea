"""Seeds: how far two dense edits that differ in their noise alone are apart, as a yardstick."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from stillframe.errors import ModelError
from stillframe.evaluation.baselines import by_recovery
from stillframe.evaluation.cells import Row
from stillframe.evaluation.editing import as_video
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings, Table, number, span
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import Interval, bootstrap_mean, by_group
from stillframe.evaluation.summaries import digits, failures, metric_mean, metric_value
from stillframe.evaluation.variants import FULL
from stillframe.metrics import Metric

__all__ = ["Seeds", "spread_of_seeds"]

_SHOWN = ("none", "clean", "aligned")


def spread_of_seeds(
    bench: Bench, metric: Metric, clips: tuple[Clip, ...], conditioning: str | None
) -> dict[Hashable, float]:
    """How far dense edits of other seeds are from that of seed 0, by clip.

    For a metric that compares with a dense edit that is the metric between the two; for others, the
    absolute difference of their numbers.
    """
    found: list[tuple[Hashable, float]] = []
    for clip in clips:
        cells = [
            bench.cells([FULL], [clip], conditioning=conditioning, seed=seed)[0]
            for seed in range(bench.scale.seeds)
        ]
        if metric.reference != "dense":
            rows = bench.matrix.run(cells, "seeds")
            first, *others = [metric_value(metric.name)(row) for row in rows]
            found += [(clip.name, abs(other - first)) for other in others]
            continue
        given: dict[str, Any] = {
            "clip": clip.name,
            "prompt": bench.prompt(clip),
            "metric": metric.name,
        }
        given |= {"conditioning": conditioning, "seeds": bench.scale.seeds}

        def compare(cells: Any = cells) -> list[float | None]:
            first, *others = [as_video(bench.matrix.dense(cell)) for cell in cells]
            values = [metric(other, first) for other in others]
            return [value if math.isfinite(value) else None for value in values]

        try:
            values = bench.matrix.once("seeds", given, compare)
        except (ModelError, ValueError):  # the row of a clip that failed says why
            continue
        found += [(clip.name, math.nan if value is None else value) for value in values]
    return by_group(found)


@register("seeds")
class Seeds(Experiment):
    """Dense edits against dense edits with other noise, beside pruned ones."""

    summary = "seed-to-seed variation: the yardstick for “as good as dense”"
    title = "Seed-to-seed variation"
    place = 5
    question = (
        "How far apart are two dense edits that differ in their noise alone? What pruning changes "
        "by less than that is within what the model leaves to chance."
    )
    papers = (
        "Nothing; a study with a 13 M model found 24–28 dB between seeds where pruning with "
        "aligned recovery stayed within 31–35 dB of dense (SDEdit)."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        clips = bench.larger()
        tables, missing, rows, words = [], [], [], []
        for conditioning in bench.conditionings():
            pruned = bench.matrix.run(
                bench.cells(by_recovery(_SHOWN), clips, conditioning=conditioning),
                f"{self.name}, {conditioning}",
            )
            dense = [
                cell
                for seed in range(bench.scale.seeds)
                for cell in bench.cells([FULL], clips, conditioning=conditioning, seed=seed)
            ]
            missing += failures([*pruned, *bench.matrix.run(dense, f"{self.name}, {conditioning}")])
            body = []
            for metric in (m for m in bench.matrix.metrics if m.reference == "dense"):
                between = spread_of_seeds(bench, metric, clips, conditioning)
                apart = bootstrap_mean(between.values())
                means = _to_dense(pruned, metric)
                shown = [span(mean, digits(metric.name)) for mean in (apart, *means)]
                body.append([metric.name, *shown])
                rows.append({"conditioning": conditioning, "metric": metric.name, **_row(apart)})
                if metric.name == "psnr":
                    words.append(
                        f"With {conditioning} conditioning, two seeds are {number(apart.mean, 1)} "
                        f"dB apart, and aligned pruning {number(means[-1].mean, 1)} dB from dense."
                    )
            heads = ["metric", "dense, other seeds", *(f"pruned, {name}" for name in _SHOWN)]
            tables.append(
                Table(
                    f"Conditioning {conditioning}: likeness to the dense edit of seed 0, of dense "
                    "edits with other seeds and of pruned edits with the same seed.",
                    heads,
                    body,
                )
            )
        return self.findings(
            words[0] if words else "No metric that compares with the dense edit can be had here.",
            words=words[1:],
            missing=missing,
            tables=tables,
            rows=rows,
        )


def _to_dense(pruned: Sequence[Row], metric: Metric) -> list[Interval]:
    """Likeness of the pruned edits to dense, by recovery."""
    return [
        metric_mean([row for row in pruned if row.cell.variant == variant], metric.name)
        for variant in by_recovery(_SHOWN)
    ]


def _row(interval: Interval) -> dict[str, Any]:
    return {f"seeds_{name}": value for name, value in interval._asdict().items()}
