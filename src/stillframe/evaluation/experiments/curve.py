"""The compressed-latent curve: patches replaced by their predecessors, and decoded. No model runs.

What pruning would cost if everything it computes were exact: the least that replacing does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stillframe.detection.latents import patch_distance
from stillframe.evaluation.experiments.base import Bench, Experiment, Job, register
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, span
from stillframe.evaluation.latents import decode, encode
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import bootstrap_mean
from stillframe.evaluation.summaries import digits
from stillframe.tokens.grid import Grid, patchify, unpatchify
from stillframe.tokens.restore import predecessor_rows, restore

__all__ = ["Curve", "replaced"]

_SHARES = (0.1, 0.2, 0.3, 0.46, 0.6, 0.75, 0.9)


def replaced(latents: Tensor, share: float, patch: int) -> Tensor:
    """Latents in which the patches that differ least from their predecessors are these instead.

    A patch is 1 x patch x patch latents; distances are taken in the original, replacement follows
    time, and the first frame is left alone.

    Args:
        latents: (1, C, F, h, w), F at least 2.
        share: of all patches, 0 to 1; with the first frame left alone, at most (F - 1) / F.
        patch: side of a patch in latents.
    """
    _, _, frames, h, w = latents.shape
    grid = Grid(frames, h // patch, w // patch)
    tokens = patchify(latents.float(), patch)
    by_frame = tokens.unflatten(1, (frames, grid.frame_tokens))
    distance = patch_distance(by_frame[:, 1:], by_frame[:, :-1], 0.0).flatten()
    count = min(round(share * grid.tokens), distance.numel())
    keep = torch.ones(grid.tokens, dtype=torch.bool, device=latents.device)
    keep[grid.frame_tokens + distance.argsort(stable=True)[:count]] = False
    rows = predecessor_rows(keep.view(1, frames, grid.frame_tokens))
    return unpatchify(restore(tokens, by_frame[:, 0], rows), grid, patch)


def _of_clip(bench: Bench, clip: Clip) -> list[dict[str, float]]:
    """A record for each share: the share replaced, and metrics of the decode against the
    original's decode; what is infinite or cannot be had is left out."""
    frames = bench.matrix.source(clip.name).frames
    latents = encode(bench.pipe, frames).whole
    original = decode(bench.pipe, latents, frames)
    most = 1 - 1 / latents.shape[2]
    kinds = [metric for metric in bench.matrix.metrics if metric.reference == "dense"]
    records = []
    for share in (share for share in _SHARES if share <= most):
        changed = replaced(latents, share, bench.pipe.denoiser.patch)
        video = decode(bench.pipe, changed, frames)
        record = {"share": share}
        for metric in kinds:
            try:
                value = metric(video, original)
            except ValueError:  # frames too small for it
                continue
            if math.isfinite(value):
                record[metric.name] = value
        records.append(record)
    return records


@register("curve")
class Curve(Experiment):
    """Likeness of the decode to the original's decode over the share of patches replaced."""

    summary = "share of latent patches replaced by predecessors against LPIPS and PSNR"
    title = "Compressed latents"
    place = 9
    question = (
        "How much of a video's latents can be replaced by the frame before, before the decoded "
        "video shows it?"
    )
    papers = "With 46% of patches replaced, decodes stay within LPIPS 0.05 of the original."
    caveats = (
        "Against the decode of the untouched latents, so what the autoencoder loses does not "
        "count. No transformer runs: this bounds what any method can reach.",
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        names = [metric.name for metric in bench.matrix.metrics]
        jobs = [
            Job(clip, {"metrics": names}, partial(_of_clip, bench, clip)) for clip in bench.larger()
        ]
        records, missing = bench.records(self.name, jobs)
        missing += [sentence for name, sentence in bench.matrix.skipped.items() if name == "lpips"]
        names = sorted({name for r in records for name in r} - {"clip", "share"})
        return self.findings(
            _headline(records, names),
            caveats=self.limits(bench),
            missing=missing,
            tables=[_table(records, names)],
            plots=[_plot(records, name) for name in names],
            rows=records,
        )


def _values(records: Sequence[dict[str, Any]], share: float, name: str) -> list[float]:
    return [r[name] for r in records if r["share"] == share and name in r]


def _shares(records: Sequence[dict[str, Any]]) -> list[float]:
    return sorted({r["share"] for r in records})


def _headline(records: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    name = next((name for name in ("lpips", "psnr", *names) if name in names), None)
    if name is None:
        return "No clip could be measured."
    share = min(_shares(records), key=lambda share: abs(share - 0.46))
    shown = span(bootstrap_mean(_values(records, share, name)), digits(name))
    return f"With {share:.0%} of patches replaced, {name} to the untouched decode is {shown}."


def _table(records: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    body = [
        [
            f"{share:.0%}",
            *(span(bootstrap_mean(_values(records, share, n)), digits(n)) for n in names),
        ]
        for share in _shares(records)
    ]
    return Table(
        "Mean and 95% interval over clips. The patches that change least go first.",
        ("replaced", *names),
        body,
    )


def _plot(records: Sequence[dict[str, Any]], name: str) -> Plot:
    points = [
        Point.of(share, bootstrap_mean(_values(records, share, name))) for share in _shares(records)
    ]
    return Plot(
        f"{name} of the decode over the share of patches replaced. Where the line bends is how "
        "much of the latents is redundant.",
        "share of patches replaced",
        name,
        [Series("mean over clips", points, line=True)],
    )
