"""Layer by layer: what each recovery does to self-attention at the tokens that are computed.

The instrument is `layers.LayerProbe`. Runs are SDEdit, as the papers'; the last block is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from stillframe.engine.settings import StreamSettings
from stillframe.evaluation.baselines import RECOVERIES
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
from stillframe.evaluation.layers import LayerProbe, Outputs, PruneFrom
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import Interval, bootstrap_mean, by_group
from stillframe.methods import find_method

__all__ = ["Layerwise", "readings_of"]

_SIGMAS = (0.95, 0.77, 0.4, 0.1)
_FLOOR = "noise redrawn"
_COLUMNS = (*RECOVERIES, _FLOOR)
# a 13 M model, two static clips, 39-47% kept: mean over layers
_EARLIER = {
    0.95: (".28–.29", ".34–.38", ".35–.39", ".09–.11", ".09–.11"),
    0.77: (".29–.30", ".32–.34", ".33–.35", ".10–.12", ".10–.13"),
    0.4: (".28–.29", ".26–.29", ".27–.30", ".09–.10", ".08–.10"),
    0.1: (".25", ".19", ".20", ".06–.07", ".05"),
}


def readings_of(
    probe: LayerProbe, settings: StreamSettings, dense: Outputs, history: str
) -> list[Record]:
    """Every recovery, and the floor, in the last block of one clip.

    Args:
        probe: of the clip.
        settings: its schedule.
        dense: the probe's run with everything computed.
        history: "own": earlier blocks are pruned as well, as in any stream; "dense": only the last
            block is, so that what an error is made of can be told apart.

    Returns:
        a record for each recovery, pass and layer; none if the block is kept or pruned whole.
    """
    first = 1 if history == "own" else probe.last
    runs = {r: probe.run(PruneFrom(recovery=r, first=first)) for r in RECOVERIES}
    masks = runs[RECOVERIES[0]].pruned
    pruned = masks.get(probe.last)
    if pruned is None or bool(pruned.all()):
        return []
    runs[_FLOOR] = probe.run(find_method("full")(), masks)
    sigmas = (*settings.sigmas, 0.0)
    share = 1 - float(pruned.float().mean())
    return [
        {
            "history": history,
            "stands_in": name,
            "pass": reading.step,
            "sigma": round(sigmas[reading.step], 4),
            "layer": reading.layer,
            "kept_share": share,
            "error": reading.error,
        }
        for name, run in runs.items()
        for reading in probe.compare(run, dense, pruned)
    ]


def _measure(bench: Bench, clip: Clip, sigmas: tuple[float, ...] | None) -> list[Record]:
    latents = encode(bench.pipe, bench.matrix.source(clip.name).frames)
    settings = bench.pipe.settings(sigmas=sigmas, conditioning="sdedit")
    embeds = bench.matrix.embeds(bench.prompt(clip))
    probe = LayerProbe(bench.pipe, latents.blocks, embeds, settings)
    dense = probe.run(find_method("full")())
    schedule = "own" if sigmas is None else "single"
    # single passes tell where errors come from; a whole schedule is looked at as it runs
    histories = ("own",) if sigmas is None else ("own", "dense")
    return [
        {"schedule": schedule, **record}
        for history in histories
        for record in readings_of(probe, settings, dense, history)
    ]


@register("layerwise")
class Layerwise(Experiment):
    """Relative error of self-attention at kept tokens, per recovery, layer, pass and sigma."""

    summary = "error of self-attention at kept tokens, per recovery, layer and noise level"
    title = "Self-attention, layer by layer"
    place = 2
    question = (
        "How far is each self-attention's output, at the tokens that are computed, from the dense "
        "model's, and how far would it be if nothing were pruned and only the pruned tokens' noise "
        "were another draw? No recovery can be told from less than that."
    )
    papers = (
        "Nothing of the kind; that copies of noisy tokens add a bias to the logits is the papers' "
        "argument for clean ones. An earlier study is in the last table."
    )
    caveats = ("Without source channels (SDEdit), whatever the model's usual conditioning is.",)
    bundled_caveat = (
        "The size of an error depends on what self-attention does in a model; the order of the "
        "columns is what carries over, not the figures."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        clips = bench.larger(bench.scale.probed_clips)
        jobs = [
            Job(
                clip,
                {"prompt": bench.prompt(clip), "sigmas": sigmas},
                partial(_measure, bench, clip, sigmas),
            )
            for clip in clips
            for sigmas in (*((sigma,) for sigma in _SIGMAS), None)
        ]
        records, missing = bench.records(self.name, jobs)
        measured = sorted({record["clip"] for record in records})
        missing += [
            f"{clip.name} was left out: its last block is computed whole"
            for clip in clips
            if clip.name not in measured and not any(clip.name in m for m in missing)
        ]
        if not records:
            return self.findings("No clip had anything to prune.", missing=missing)
        return self.findings(
            _headline(records),
            words=[_sentence(records, measured)],
            caveats=self.limits(bench),
            missing=missing,
            tables=[
                _by_sigma(records, "own", "Earlier blocks are pruned as well, as in any stream."),
                _by_sigma(
                    records,
                    "dense",
                    "Earlier blocks are computed whole: “none” is then pruning with a complete "
                    "cache, and what a stream carries over is left out.",
                ),
                _by_pass(records),
                _earlier(),
            ],
            plots=[_over_sigma(records), _over_layers(records)],
            rows=records,
        )


def _mean(records: Iterable[Record]) -> Interval:
    """Over clips, of the mean over layers."""
    return bootstrap_mean(by_group((r["clip"], r["error"]) for r in records).values())


def _by_sigma(records: Sequence[Record], history: str, caption: str) -> Table:
    body = []
    for sigma in _SIGMAS:
        found = pick(records, schedule="single", history=history, sigma=sigma)
        cells = [span(_mean(pick(found, stands_in=name)), 3) for name in _COLUMNS]
        body.append([number(sigma), *cells])
    return Table(
        f"Relative error at kept tokens in one pass at sigma, mean over layers, with 95% intervals "
        f"over clips. {caption}",
        ["sigma", *_COLUMNS],
        body,
    )


def _by_pass(records: Sequence[Record]) -> Table:
    found = pick(records, schedule="own", history="own")
    body = []
    for step, sigma in sorted({(r["pass"], r["sigma"]) for r in found}):
        name = "context" if sigma == 0 else f"{step + 1}, sigma {sigma:.3f}"
        mine = pick(found, **{"pass": step})
        body.append([name, *(span(_mean(pick(mine, stands_in=c)), 3) for c in _COLUMNS)])
    return Table(
        "The same in each pass of the model's own SDEdit schedule: errors of earlier passes are in "
        "later ones. In the context pass all recoveries but none do the same.",
        ["pass", *_COLUMNS],
        body,
    )


def _earlier() -> Table:
    body = [[number(sigma), *cells] for sigma, cells in _EARLIER.items()]
    return Table(
        "For comparison, an earlier study: a 13 M block-causal model, two static clips, 39–47% of "
        "tokens kept, mean over layers.",
        ["sigma", *_COLUMNS],
        body,
    )


def _over_sigma(records: Sequence[Record]) -> Plot:
    series = []
    for name in _COLUMNS:
        found = pick(records, schedule="single", history="own", stands_in=name)
        points = [Point.of(sigma, _mean(pick(found, sigma=sigma))) for sigma in sorted(_SIGMAS)]
        series.append(Series(name, points, line=True))
    return Plot(
        "Relative error over the noise level, earlier blocks pruned as well. The lower the line "
        "the closer to dense; nothing below “noise redrawn” means anything.",
        "sigma",
        "relative error",
        series,
    )


def _over_layers(records: Sequence[Record]) -> Plot:
    found = pick(records, schedule="single", history="own", sigma=0.77, **{"pass": 0})
    series = []
    for name in _COLUMNS:
        mine = pick(found, stands_in=name)
        layers = sorted({r["layer"] for r in mine})
        points = [Point(layer, _mean(pick(mine, layer=layer)).mean) for layer in layers]
        series.append(Series(name, points, line=True))
    return Plot("The same by layer, at sigma 0.77.", "layer", "relative error", series)


def _headline(records: Sequence[Record]) -> str:
    found = pick(records, schedule="single", history="own", sigma=0.77)
    parts = [f"{name} {number(_mean(pick(found, stands_in=name)).mean, 3)}" for name in _COLUMNS]
    return f"Relative error at sigma 0.77, mean over layers and clips: {', '.join(parts)}."


def _sentence(records: Sequence[Record], clips: Sequence[str]) -> str:
    """How far aligned recovery is from the floor, and whether anything else is closer."""
    found = pick(records, schedule="single", history="own")
    means = {name: _mean(pick(found, stands_in=name)).mean for name in _COLUMNS}
    best = min(RECOVERIES, key=means.__getitem__)
    share = bootstrap_mean(by_group((r["clip"], r["kept_share"]) for r in found).values()).mean
    agrees = "as in" if best == "aligned" else "unlike"
    many = f"{len(clips)} clip{'s' * (len(clips) > 1)}"
    return (
        f"Over all noise levels and {many} with {share:.0%} of the last block kept, "
        f"{best} is closest to dense, {agrees} the earlier study; aligned is "
        f"{means['aligned'] / means[_FLOOR]:.2f} times the floor there (1 is all that can be had)."
    )
