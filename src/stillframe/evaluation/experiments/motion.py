"""Motion: what reusing patches from other places saves, and what it costs in likeness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stillframe.errors import ModelError
from stillframe.evaluation.built_motion import edit_built
from stillframe.evaluation.cells import Cell, Row
from stillframe.evaluation.editing import worst_patches
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings, Table, number, span
from stillframe.evaluation.motion_cases import CASES
from stillframe.evaluation.summaries import by_label, failures, over_clips, video_groups
from stillframe.evaluation.variants import FULL, Variant
from stillframe.jobs.report import STAGES
from stillframe.methods.prune import MOTIONS

__all__ = ["Motion", "ratio"]

_LEAST = 0.5  # grey levels: what another seed differs by counts as this much at least
_STAGES = STAGES[1:]  # a clip is read before


@register("motion")
class Motion(Experiment):
    """Every motion on every clip in every style, beside the dense edit and its other seeds."""

    summary = "motion off, global and full: computed, moved, worst patches, staleness, speed"
    title = "Motion"
    place = 10
    question = (
        "How much less is computed where a patch may be reused from another place, and do its "
        "worst patches still differ from the dense edit by no more than another seed does?"
    )
    papers = "Nothing: there, a patch is reused at its own place alone."
    caveats = (
        "The dense edit is no truth: where it blurs what moves, so does what is like it.",
        "Times are those of the first prompt; reading the clip is not in them.",
    )
    bundled_caveat = (
        "The bundled model is so small that the autoencoder, which sees every patch, weighs more "
        "than the tokens; a larger model gains more from the same share."
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        cells = _cells(bench)
        rows = bench.matrix.run(cells, self.name)
        done = [row for row in rows if row.error is None]
        seeds = {row.cell.on: _seeds(bench, row.cell) for row in done}
        built = _built(bench)
        return self.findings(
            _headline(done, seeds),
            caveats=self.limits(bench),
            missing=failures(rows),
            tables=[_clips(done, seeds), _times(done), _built_table(built)],
            videos=video_groups(bench.matrix, done),
            rows=[*(_flat(row, seeds[row.cell.on]) for row in done), *built],
        )


def _cells(bench: Bench) -> list[Cell]:
    """Every motion, style and clip; the first style is timed beside the dense edit."""
    variants = [Variant.of("prune", motion=motion) for motion in MOTIONS]
    return [
        Cell(variant, clip.name, prompt, paired=not number)
        for clip in bench.larger()
        for number, prompt in enumerate(bench.scale.styles)
        for variant in variants
    ]


def _seeds(bench: Bench, cell: Cell) -> dict[str, float]:
    """Worst patches of dense edits of other seeds against that of a cell; empty if one failed."""
    given = {"clip": cell.clip, "prompt": cell.prompt, "seeds": bench.scale.seeds}
    dense = [replace(cell, variant=FULL, seed=seed) for seed in range(bench.scale.seeds)]

    def compare() -> dict[str, float]:
        first, *others = map(bench.matrix.dense, dense)
        return worst_patches([(other, first) for other in others], bench.pipe)

    try:
        found: dict[str, float] = bench.matrix.once("motion, other seeds", given, compare)
    except ModelError:  # the row of a clip that failed says why
        return {}
    return found


def ratio(worst: float, seed: float) -> float:
    """Worst patches in those of another seed, of which half a grey level is counted at least."""
    return worst / max(seed, _LEAST)


def _motion(row: Row) -> str:
    return str(dict(row.cell.variant.params)["motion"])


def _flat(row: Row, seed: dict[str, float]) -> dict[str, Any]:
    """A row's numbers for a table file."""
    found: dict[str, Any] = {
        "clip": row.cell.clip,
        "prompt": row.cell.prompt,
        "motion": _motion(row),
        "computed": row.kept_share,
        "moved": row.moved_share,
    }
    found |= _differences(row.worst_patch, seed, row.staleness)
    found["speedup"] = row.speedup("total")
    for stage in (*_STAGES, "total"):
        found[f"seconds_{stage}"] = row.seconds.get(stage, math.nan)
        found[f"dense_seconds_{stage}"] = row.full_seconds.get(stage, math.nan)
    return found


def _differences(
    worst: Mapping[str, float], seed: Mapping[str, float], stale: Mapping[str, float]
) -> dict[str, float]:
    """What is told of worst patches, those of other seeds, and staleness; nan where there is
    none."""
    found = {}
    for name in ("p99", "p99.9"):
        found[f"worst_{name}"] = worst.get(name, math.nan)
        found[f"seed_{name}"] = seed.get(name, math.nan)
    found["ratio"] = ratio(found["worst_p99"], found["seed_p99"])
    for name in ("p99", "max"):
        found[f"stale_{name}"] = stale.get(name, math.nan)
    return found


def _clips(rows: Sequence[Row], seeds: Mapping[Any, dict[str, float]]) -> Table:
    body = []
    for row in rows:
        x = _flat(row, seeds[row.cell.on])
        body.append(
            [
                x["clip"],
                x["prompt"],
                x["motion"],
                f"{x['computed']:.0%}",
                f"{x['moved']:.0%}",
                *(
                    f"{number(x[f'worst_{name}'], 1)} ({number(x[f'seed_{name}'], 1)})"
                    for name in ("p99", "p99.9")
                ),
                number(x["ratio"]),
                f"{number(x['stale_p99'], 1)}, {number(x['stale_max'], 1)}",
                number(x["speedup"]),
            ]
        )
    heads = (
        *("clip", "prompt", "motion", "computed", "moved", "worst p99 (other seeds)"),
        *("p99.9 (other seeds)", "ratio", "stale p99, max", "speedup, all"),
    )
    return Table(
        "Shares of all patches, the first block included. Worst: differences of patches of 16x16 "
        "pixels from the dense edit, in grey levels, the first block left out; in brackets those "
        f"of dense edits of other seeds, and the ratio of the two, {_LEAST:g} counted at least. "
        "Stale: what was reused against its source. The speedup is that of the whole clip against "
        "the dense edit, block by block in the same run.",
        heads,
        body,
    )


def _times(rows: Sequence[Row]) -> Table:
    """Seconds of every stage, dense ones in the first line."""
    timed = {label: [r for r in group if r.cell.paired] for label, group in by_label(rows).items()}
    body = []
    for label, group in {"dense": next(iter(timed.values()), []), **timed}.items():
        whole = label == "dense"
        cells = [label]
        for stage in (*_STAGES, "total"):
            spent = [
                1000 * (row.full_seconds if whole else row.seconds).get(stage, 0.0) / row.frames
                for row in group
            ]
            cells.append(number(sum(spent) / len(spent) if spent else math.nan, 1))
        speed = over_clips(group, lambda row: row.speedup("total"))
        body.append([*cells, "1" if whole else span(speed)])
    return Table(
        "Milliseconds a frame by stage, mean over clips; “mask” holds the optical flow. The dense "
        "edit is the one beside motion off. The speedup has its 95% interval over clips.",
        ("method", *_STAGES, "total", "speedup, all"),
        body,
    )


def _built(bench: Bench) -> list[dict[str, Any]]:
    """Every built motion, edited in the first style."""
    scale, pipe, found = bench.scale, bench.pipe, []
    height = scale.height or pipe.config.default_height
    width = scale.width or height * 16 // 9 // pipe.frame_multiple * pipe.frame_multiple
    size, prompt = (scale.frames, height, width), scale.styles[0]
    for case in bench.matrix.progress.steps("motion, built", list(CASES)):
        given = {"case": case, "size": size, "prompt": prompt}
        told = bench.matrix.once(
            "motion, built",
            given,
            partial(edit_built, pipe, bench.matrix.embeds(prompt), case, size),
        )
        shares = {name: told[name] for name in ("computed", "moved")}
        row = {"clip": case, "prompt": prompt, "motion": "full", **shares}
        row |= _differences(told["worst"], told["seed"], told["stale"])
        found.append(row)
    return found


def _built_table(rows: Sequence[dict[str, Any]]) -> Table:
    body = [
        [
            row["clip"],
            f"{row['computed']:.0%}",
            f"{row['moved']:.0%}",
            f"{number(row['worst_p99'], 1)} ({number(row['seed_p99'], 1)})",
            number(row["ratio"]),
            f"{number(row['stale_p99'], 1)}, {number(row['stale_max'], 1)}",
        ]
        for row in rows
    ]
    heads = ("motion", "computed", "moved", "worst p99 (other seeds)", "ratio", "stale p99, max")
    return Table(
        "A texture under a camera that moves by known amounts: pans by so many pixels a frame, a "
        "zoom, a rotation of so many degrees a frame, a shake of 3 pixels to either side, and a "
        "pan by 1 behind a still logo. Shares, differences and staleness as above, motion full.",
        heads,
        body,
    )


def _headline(rows: Sequence[Row], seeds: Mapping[Any, dict[str, float]]) -> str:
    shares = {
        motion: over_clips([row for row in rows if _motion(row) == motion], lambda r: r.kept_share)
        for motion in MOTIONS
    }
    if not rows or math.isnan(shares["full"].mean):
        return "No clip could be edited."
    worst = [
        (ratio(row.worst_patch["p99"], seeds[row.cell.on]["p99"]), row.cell)
        for row in rows
        if _motion(row) == "full" and "p99" in row.worst_patch and "p99" in seeds[row.cell.on]
    ]
    told = f"computed are {', '.join(f'{x.mean:.0%} with {m}' for m, x in shares.items())}"
    if not worst:
        return f"Of all patches {told}."
    most, cell = max(worst, key=lambda x: x[0])
    return (
        f"Of all patches {told}; worst patches with full differ from dense by at most "
        f"{number(most)} times what another seed does ({cell.clip}, “{cell.prompt}”)."
    )
