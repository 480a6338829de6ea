"""How far aligned recovery can be pushed: what to align to, looser thresholds, an FP8 store, a long
still with refresh or without.

Runs are SDEdit, the papers' way and the one in which self-attention counts most. Errors are read
off latents and self-attention; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import numpy as np
from torch import Tensor

from stillframe.controls import Controls
from stillframe.controls.refresh import Refresh
from stillframe.evaluation.alignments import ALIGNMENTS
from stillframe.evaluation.experiments.base import (
    Bench,
    Experiment,
    Job,
    Record,
    pick,
    register,
)
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, number, span
from stillframe.evaluation.latents import encode
from stillframe.evaluation.layers import LayerProbe, Outputs
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.static_scene import block_errors, encoded_scene, run_latents
from stillframe.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning

__all__ = ["LONG_RUNS", "PushedRecovery", "relaxed_share", "rms"]

_USUAL = next(iter(ALIGNMENTS))
_FP8 = "same frame, FP8 store"
_SCALES = (0.5, 1.0, 1.5, 2.0)
_RECOVERIES = ("none", "clean", "aligned")
_BLOCKS = 64
_LONG_CLIPS = 2
_SPAN = 8  # blocks that make "early" and "late"

#: Runs over the long still: recovery, store and blocks of a refresh.
LONG_RUNS: dict[str, tuple[str, str, int | None]] = {
    "none": ("none", "exact", None),
    "clean": ("clean", "exact", None),
    "aligned": ("aligned", "exact", None),
    "aligned, FP8 store": ("aligned", "fp8", None),
    "aligned, refresh 16": ("aligned", "exact", 16),
    "aligned, refresh 8": ("aligned", "exact", 8),
}
_YARDSTICK = "dense, another seed"


def rms(run: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """Root mean square difference of edited latents, the first block left out."""
    squares = [float((a - b).double().square().mean()) for a, b in zip(run, dense, strict=True)]
    return fmean(squares[1:]) ** 0.5


def _alignments(probe: LayerProbe, rounded: LayerProbe, dense: Outputs) -> list[Record]:
    """Every choice of what to align to, and the FP8 store, under the same mask."""
    method, records = InterFramePruning(detector="latent"), []
    for name, (tool, kind) in {
        **{name: (probe, kind) for name, kind in ALIGNMENTS.items()},
        _FP8: (rounded, ALIGNMENTS[_USUAL]),
    }.items():
        run = tool.run(method, kind=kind)
        pruned = run.pruned.get(probe.last)
        if pruned is None or bool(pruned.all()):
            return []
        passes = len(run.calls) // probe.layers - 1
        readings = probe.compare(run, dense, pruned)
        layer = fmean(r.error for r in readings if r.step < passes)
        own = rms(run.latents, dense.latents)
        records.append({"part": "alignment", "name": name, "layer": layer, "latent": own})
    return records


def _thresholds(probe: LayerProbe, dense: Outputs) -> list[Record]:
    """Share pruned and error at several scales of the thresholds, per recovery."""
    records = []
    usual = InterFramePruning(detector="latent")
    tau1, tau2 = usual.thresholds
    for recovery in _RECOVERIES:
        for scale in _SCALES:
            method = replace(usual, recovery=recovery, tau1=tau1 * scale, tau2=tau2 * scale)
            run = probe.run(method)
            share = fmean(1 - float(keep.float().mean()) for keep in run.keep[1:])
            found = {"pruned": share, "latent": rms(run.latents, dense.latents)}
            records.append({"part": "threshold", "name": recovery, "scale": scale, **found})
    return records


def _of_clip(bench: Bench, clip: Clip) -> list[Record]:
    latents = encode(bench.pipe, bench.matrix.source(clip.name).frames)
    settings = bench.pipe.settings(conditioning="sdedit", store="exact")
    embeds = bench.matrix.embeds(bench.prompt(clip))
    probe = LayerProbe(bench.pipe, latents.blocks, embeds, settings)
    rounded = LayerProbe(bench.pipe, latents.blocks, embeds, replace(settings, store="fp8"))
    dense = probe.run(find_method("full")())
    return _alignments(probe, rounded, dense) + _thresholds(probe, dense)


def _long(bench: Bench, clip: Clip, blocks: int) -> list[Record]:
    source = encoded_scene(bench.pipe, bench.matrix.source(clip.name).frames, blocks)
    settings = bench.pipe.settings(conditioning="sdedit", store="exact")
    run = partial(run_latents, bench.pipe, source, bench.matrix.embeds(bench.prompt(clip)))
    full = find_method("full")()
    dense = run(settings, full)
    runs = {_YARDSTICK: run(settings, full, seed=1)}
    for name, (recovery, store, refresh) in LONG_RUNS.items():
        control = None if refresh is None else Controls(Refresh(refresh))
        method = InterFramePruning(recovery, detector="latent")
        runs[name] = run(replace(settings, store=store), method, control)
    return [
        {"part": "long", "name": name, "block": block, **error._asdict()}
        for name, latents in runs.items()
        for block, error in enumerate(block_errors(latents, dense))
    ]


def relaxed_share(records: Sequence[Record], recovery: str) -> float:
    """Share that a recovery prunes, in one clip, at the error of clean recovery as it is usual.

    Between the scales by linear interpolation, from nothing pruned and no error on; where even the
    loosest thresholds err less, the share they prune, which is too low then.
    """
    clean = pick(records, name="clean", scale=1.0)
    mine = sorted((r["latent"], r["pruned"]) for r in pick(records, name=recovery))
    x, y = zip((0.0, 0.0), *mine, strict=True)
    return float(np.interp(clean[0]["latent"], x, y))


@register("recovery")
class PushedRecovery(Experiment):
    """Alignment, thresholds, the FP8 store and a long still."""

    summary = "what aligned recovery aligns to, looser thresholds, FP8 store, a long still"
    title = "Recovery, pushed further"
    place = 4
    question = (
        "Which frame of the step before should stand in after motion, how much more can be pruned "
        "at the error of clean recovery, what does an FP8 store cost, and do errors add up over a "
        "long still?"
    )
    papers = "Nothing of the kind; long clips are among what they leave open."
    caveats = (
        "Error to dense is no loss of quality by itself: where nothing changes, a pruned place "
        "keeps an earlier draw of the noise, and dense a new one every block.",
        f"Long stills are made of {_LONG_CLIPS} clips at most, and clips differ. Where another "
        "seed of dense drifts as far, what a pruned run adds does not show.",
    )
    bundled_caveat = "The bundled model is small: the order carries over, if anything does."

    #: Blocks of the long still.
    blocks = _BLOCKS

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        jobs = [
            Job(clip, {"prompt": bench.prompt(clip)}, partial(_of_clip, bench, clip))
            for clip in bench.larger()
        ]
        jobs += [
            Job(
                clip,
                {"prompt": bench.prompt(clip), "blocks": str(self.blocks)},
                partial(_long, bench, clip, self.blocks),
            )
            for clip in bench.larger(_LONG_CLIPS)
        ]
        records, missing = bench.records(self.name, jobs)
        if not records:
            return self.findings("No clip was long and large enough.", missing=missing)
        return self.findings(
            _headline(records),
            words=[text for text in (_of_thresholds(records), _of_long(records)) if text],
            caveats=self.limits(bench),
            missing=missing,
            tables=[_alignment_table(records), _threshold_table(records), _long_table(records)],
            plots=[_threshold_plot(records), _long_plot(records)],
            rows=records,
        )


def _gap(records: Sequence[Record], name: str, measure: str) -> Interval:
    """A choice's error minus the usual one's, clip by clip."""

    def by_clip(which: str) -> dict[Hashable, float]:
        return {r["clip"]: r[measure] for r in pick(records, part="alignment", name=which)}

    return paired_difference(by_clip(name), by_clip(_USUAL))


def _alignment_table(records: Sequence[Record]) -> Table:
    body = []
    for name in (*ALIGNMENTS, _FP8):
        mine = pick(records, part="alignment", name=name)
        cells = [name]
        for measure in ("layer", "latent"):
            cells.append(span(bootstrap_mean(r[measure] for r in mine), 4))
            cells.append("" if name == _USUAL else span(_gap(records, name, measure), 4))
        if mine:
            body.append(cells)
    return Table(
        "Aligned to what: relative error of self-attention at kept tokens in the last block, mean "
        "over layers and denoising passes, and root mean square error of the edited latents, in "
        "standard deviations; each with its difference to the first line, pair by pair.",
        ["aligned to", "self-attention", "difference", "latents", "difference"],
        body,
    )


def _by_clip(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in pick(records, part="threshold"):
        found.setdefault(record["clip"], []).append(record)
    # where nothing is pruned there is nothing to compare
    return {clip: own for clip, own in found.items() if pick(own, scale=1.0)[0]["pruned"] > 0}


def _relaxed(records: Sequence[Record], recovery: str) -> Interval:
    clips = _by_clip(records).items()
    own: dict[Hashable, float] = {clip: relaxed_share(mine, recovery) for clip, mine in clips}
    usual: dict[Hashable, float] = {clip: relaxed_share(mine, "clean") for clip, mine in clips}
    return paired_difference(own, usual)


def _threshold_table(records: Sequence[Record]) -> Table:
    body = []
    for name in _RECOVERIES:
        for scale in _SCALES:
            mine = pick(records, part="threshold", name=name, scale=scale)
            if mine:
                shares, errors = ([r[key] for r in mine] for key in ("pruned", "latent"))
                row = [name, number(scale, 1), f"{fmean(shares):.0%}"]
                body.append([*row, span(bootstrap_mean(errors), 4)])
    return Table(
        "Thresholds times a factor: share pruned after the first block and error of the edited "
        "latents against dense.",
        ["recovery", "factor", "pruned", "latents"],
        body,
    )


def _mean_error(records: Sequence[Record], name: str, measure: str, late: bool) -> float:
    """Over clips, at the beginning or the end of the long still."""
    mine = pick(records, part="long", name=name)
    last = max(r["block"] for r in mine)
    wanted = range(last + 1 - _SPAN, last + 1) if late else range(1, 1 + _SPAN)
    return fmean(r[measure] for r in mine if r["block"] in wanted)


def _long_table(records: Sequence[Record]) -> Table:
    body = []
    for name in (_YARDSTICK, *LONG_RUNS):
        if pick(records, part="long", name=name):
            cells = [
                number(_mean_error(records, name, measure, late), 4)
                for measure in ("moving", "still")
                for late in (False, True)
            ]
            body.append([name, *cells])
    clips = _long_clips(records)
    blocks = len(pick(records, part="long", name=_YARDSTICK)) // max(1, len(clips))
    return Table(
        f"A still of {blocks} blocks with camera noise, a quarter of it moving: root mean square "
        f"error of the edited latents against dense over the {_SPAN} blocks after the first and "
        f"over the last {_SPAN}, mean over {', '.join(clips)}.",
        ["", "moving, early", "moving, late", "still, early", "still, late"],
        body,
    )


def _long_clips(records: Sequence[Record]) -> list[str]:
    return sorted({r["clip"] for r in pick(records, part="long")})


def _threshold_plot(records: Sequence[Record]) -> Plot:
    series = []
    for name in _RECOVERIES:
        points = []
        for scale in _SCALES:
            mine = pick(records, part="threshold", name=name, scale=scale)
            if mine:
                shares, errors = ([r[key] for r in mine] for key in ("pruned", "latent"))
                points.append(Point(fmean(shares), fmean(errors)))
        series.append(Series(name, points, line=True))
    caption = "Error over the share pruned as thresholds grow, means over clips; lower is better."
    return Plot(caption, "share of tokens pruned", "error of latents", series)


def _long_plot(records: Sequence[Record]) -> Plot:
    series = []
    for name in (_YARDSTICK, *LONG_RUNS):
        mine = pick(records, part="long", name=name)
        points = [
            Point(block, fmean(r["moving"] for r in pick(mine, block=block)))
            for block in sorted({r["block"] for r in mine})
        ]
        series.append(Series(name, points, line=True))
    caption = "The long still, block by block, where something moves: a rising line adds errors up."
    return Plot(caption, "block", "error of latents", series)


def _headline(records: Sequence[Record]) -> str:
    found = {name: _gap(records, name, "layer") for name in [*ALIGNMENTS][1:]}
    better = [name for name, gap in found.items() if gap.size > 4 and gap.high < 0]
    if better:
        best = min(better, key=lambda name: found[name].mean)
        gap = span(found[best], 4)
        return f"Aligning to the {best} errs less than to the {_USUAL}, by {gap} a layer."
    return f"No choice of what to align to is shown to err less than the {_USUAL}."


def _of_thresholds(records: Sequence[Record]) -> str:
    gain = _relaxed(records, "aligned")
    if not gain.size:
        return ""
    return (
        f"At the error that clean recovery has with the usual thresholds, aligned recovery prunes "
        f"{span(gain, 3)} more of all tokens (a share, with its interval over {gain.size} clips)."
    )


def _of_long(records: Sequence[Record]) -> str:
    if not pick(records, part="long", name="aligned"):
        return ""
    parts = []
    for name in (_YARDSTICK, *LONG_RUNS):
        early, late = (_mean_error(records, name, "moving", late) for late in (False, True))
        parts.append(f"{name} {number(late / early) if early else '—'}")
    return f"Over the long still, late error over early error where it moves: {', '.join(parts)}."
