"""The two commands behind `stillframe eval` and `stillframe reproduce`, without their arguments.

`evaluate` runs a matrix that a user lays out, `reproduce` the experiments of this package; either
leaves rows, tables and one HTML page in a folder, and goes on there if it is called again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from stillframe.evaluation.cells import Cell, Conditions, Row
from stillframe.evaluation.experiments import Bench, Scale, experiments, find_experiment
from stillframe.evaluation.experiments.quality import against_dense
from stillframe.evaluation.findings import Findings, Plot, Point, Series
from stillframe.evaluation.matrix import Matrix, Progress, fingerprint
from stillframe.evaluation.report_html import page
from stillframe.evaluation.results_page import results_page
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.summaries import (
    by_label,
    failures,
    flat,
    metric_plots,
    quality_table,
    speed_table,
    split,
    video_groups,
)
from stillframe.evaluation.tables import write_table, write_text
from stillframe.evaluation.variants import FULL, Variant
from stillframe.loading.load import bundled_models
from stillframe.metrics import metrics
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["BUNDLED_SCALE", "PUBLISHED_SCALE", "Plan", "evaluate", "reproduce", "scaled"]

#: On two CPU cores, well within the hour.
BUNDLED_SCALE = Scale(
    frames=36,
    height=176,
    width=304,
    clips=4,
    paired_clips=2,
    probed_clips=3,
    prompts=("oil painting", "watercolour painting", "neon outlines"),
)
#: The papers' size; hours on a GPU.
PUBLISHED_SCALE = Scale(
    frames=81,
    height=480,
    width=832,
    clips=None,
    paired_clips=4,
    probed_clips=8,
    prompts=(
        "an oil painting with thick brush strokes",
        "an animated film, clean lines and flat colours",
        "a snowy winter day, soft light",
    ),
    seeds=3,
)

_INTRO = (
    "stillframe edits video with a causal diffusion transformer and computes only those patches of "
    "its latents that changed. “Dense” is the same model with every patch computed, “computed” the "
    "share of patches that were. A method prunes patches (leaves them out) or merges them; a "
    "recovery is what stands in for pruned patches in self-attention: nothing (none), copies of "
    "noisy or of clean keys and values, or those of the same denoising step one block earlier "
    "(aligned, the default)."
)
_BUNDLED_NOTE = (
    "The model is the small one that comes with the package. It demonstrates, tests and times; it "
    "cannot settle claims about quality, which concern models of 1.3 billion parameters. The same "
    "command with --model answers them for those."
)


@dataclass(frozen=True)
class Plan:
    """What a run works with.

    Attributes:
        pipe: the model.
        model: its name.
        clips: to edit.
        out: folder to write.
        command: as it was typed, for the reports.
        metric_names: what to measure; None for all.
        progress: who is told how far it is, and may end it.
    """

    pipe: CausalWanPipeline
    model: str
    clips: tuple[Clip, ...]
    out: Path
    command: str = ""
    metric_names: Sequence[str] | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def bundled(self) -> bool:
        """Whether the model is one that comes with the package."""
        return self.model in bundled_models()

    def conditions(self, frames: int, height: int | None, width: int | None) -> Conditions:
        """What all cells have in common."""
        device, dtype = self.pipe.compute_device, self.pipe.transformer.dtype
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        number = str(dtype).removeprefix("torch.")
        weights = fingerprint(self.pipe)
        return Conditions(self.model, weights, frames, height, width, name, number)

    def matrix(self, conditions: Conditions) -> Matrix:
        """The matrix in the output folder."""
        names = self.metric_names
        return Matrix(self.pipe, self.clips, conditions, self.out, names, self.progress)


def evaluate(
    plan: Plan,
    variants: Sequence[Variant],
    *,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    frames: int = 81,
    height: int | None = None,
    width: int | None = None,
    conditioning: str | None = None,
    paired: bool = False,
) -> list[Row]:
    """Every variant on every clip with every prompt and seed, and the reports of it.

    Args:
        plan: what to work with.
        variants: methods; the dense edit is made in any case.
        prompts, seeds: of the edits.
        frames: most frames of a clip.
        height, width: working size in pixels, see `fit.fit_to_grid`.
        conditioning: "source" or "sdedit"; None for the model's own.
        paired: time each edit beside a dense one, block by block.

    Returns:
        the rows, dense ones first.

    Raises:
        KeyboardInterrupt: the run was to end; the same call goes on.
        OutputError: a file cannot be written.
        ValueError: for an unknown metric.
    """
    matrix = plan.matrix(plan.conditions(frames, height, width))
    on = [(clip.name, prompt, seed) for clip in plan.clips for prompt in prompts for seed in seeds]
    cells = [Cell(FULL, *place, conditioning) for place in on]
    cells += [
        Cell(variant, *place, conditioning, paired)
        for place in on
        for variant in variants
        if variant != FULL
    ]
    rows = matrix.run(cells, "eval")
    found = _matrix_findings(matrix, rows, paired)
    facts = _facts(plan, matrix, "; ".join(prompts))
    _write(plan, "Evaluation", facts, [found], rows)
    return rows


def _matrix_findings(matrix: Matrix, rows: Sequence[Row], paired: bool) -> Findings:
    dense, others = split(rows)
    groups = by_label(others)
    tables = [
        quality_table(
            rows, "Mean and 95% interval over clips. Arrows say which direction is better."
        )
    ]
    if groups:
        tables.append(against_dense(others, dense))
    if paired:
        caption = "Each alternates with a dense edit block by block: read the speedups."
        tables.append(speed_table(others, caption))
    return Findings(
        name="matrix",
        title="The matrix",
        question="Each method on each clip with each prompt and seed.",
        headline=f"{len(dense) + len(others)} of {len(rows)} cells done, {len(groups)} variants "
        "beside dense.",
        missing=list(dict.fromkeys([*failures(rows), *matrix.skipped.values()])),
        tables=tables,
        plots=[*metric_plots(others, dense), *_latency(rows)],
        videos=video_groups(matrix, rows, most=3),
    )


def _latency(rows: Sequence[Row]) -> list[Plot]:
    """Seconds of a block over the tokens it computes, after the first."""
    series = [
        Series(
            label,
            [Point(b.kept, 1000 * b.seconds) for row in group for b in row.blocks[1:]],
        )
        for label, group in by_label(rows).items()
    ]
    caption = (
        "Milliseconds of each block's denoising over the tokens it computes, the first block of "
        "each clip left out. Methods that merge add the time of merging."
    )
    return [Plot(caption, "tokens computed in a block", "milliseconds", series)]


def reproduce(plan: Plan, names: Sequence[str], scale: Scale) -> list[Findings]:
    """Run experiments and write the reports; what is on disk is not done again.

    Args:
        plan: what to work with.
        names: of experiments; "all" stands for every one.
        scale: how much to run.

    Raises:
        KeyboardInterrupt: the run was to end; the same call goes on.
        OutputError: a file cannot be written.
        ValueError: for an unknown experiment or metric.
    """
    chosen = experiments() if "all" in names else {name: find_experiment(name) for name in names}
    kinds = sorted(chosen.values(), key=lambda kind: kind.place)
    matrix = plan.matrix(plan.conditions(scale.frames, scale.height, scale.width))
    bench = Bench(plan.pipe, matrix, plan.clips, scale, plan.bundled)
    found = [kind().run(bench) for kind in kinds]
    facts = _facts(plan, matrix, "; ".join(scale.prompts) + " (each clip gets the next one)")
    _write(plan, "Results", facts, found, matrix.rows)
    return found


def _facts(plan: Plan, matrix: Matrix, prompts: str) -> dict[str, str]:
    conditions = matrix.conditions
    known = metrics()
    measured = [f"{m.name} ({known[m.name].summary})" for m in matrix.metrics]
    size = f"{conditions.width or 'any'}x{conditions.height or 'any'}"
    return {
        "command": plan.command or "called from Python",
        "model": f"{conditions.model} (weights {conditions.weights}, {conditions.dtype})",
        "device": f"{conditions.device}, {_processor()}",
        "clips": f"{len(plan.clips)}: {', '.join(clip.name for clip in plan.clips)}",
        "size": f"at most {conditions.frames} frames of {size}",
        "prompts": prompts,
        "metrics": "; ".join(measured),
        "metrics left out": "; ".join(dict.fromkeys(matrix.skipped.values())) or "none",
        "versions": ", ".join(
            (
                f"stillframe {version('stillframe')}",
                f"torch {torch.__version__}",
                f"Python {platform.python_version()}",
                platform.system(),
            )
        ),
        "intervals": "95%, percentile bootstrap over clips, 10,000 draws; with fewer than five "
        "clips they are narrower than they should be, and a single clip has none",
    }


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {cores} CPU cores, {threads} thread{'s' * (threads > 1)} used"


def _write(
    plan: Plan,
    title: str,
    facts: dict[str, str],
    findings: Sequence[Findings],
    rows: Sequence[Row],
) -> None:
    """Everything that is left in the output folder for people."""
    notes = [_BUNDLED_NOTE] if plan.bundled else []
    write_text(plan.out / "report.html", page(title, _INTRO, facts, notes, findings))
    command = plan.command or "stillframe reproduce all"
    write_text(plan.out / "results.md", results_page(title, command, facts, notes, findings))
    if rows:
        write_table(plan.out / "rows.csv", [flat(row, sorted(metrics())) for row in rows])
    for found in findings:
        if found.rows:
            write_table(plan.out / f"{found.name}.csv", found.rows)


def scaled(scale: Scale, **given: object) -> Scale:
    """A scale with what is not None replaced.

    Raises:
        ValueError: for numbers out of range.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    return replace(scale, **wanted)  # type: ignore[arg-type]
