"""The report of an edit, put together from what the loop, the files and the device say of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stillframe.jobs.job import Job
from stillframe.jobs.loop import Comparison, FileLoop
from stillframe.jobs.report import DENOISING_STAGES, Report, RunReport
from stillframe.video import VideoReader
from stillframe.video.fit import Fit

__all__ = ["edit_report"]


def edit_report(
    job: Job, reader: VideoReader, fit: Fit, loop: FileLoop, comparison: Comparison | None
) -> Report:
    """The report of an edit whose files are complete.

    Args:
        job: the model and the prompt.
        reader, fit, loop: what it was done with; the first of the loop's runs is the edit.
        comparison: to the second run, None if there was none.
    """
    files = loop.clock.lap()
    frames, edit = loop.writer.frames_written, loop.runs[0]
    flickers = (None, None) if comparison is None else comparison.flicker.levels
    runs = [run.report(files, frames, f) for run, f in zip(loop.runs, flickers, strict=False)]
    runs[0].seconds["load"] = job.load_seconds
    settings = edit.stream.settings
    return Report(
        **{name: getattr(runs[0], name) for name in asdict(runs[0])},
        **({} if comparison is None else _differences(runs[0], runs[1], comparison)),
        **job.facts(loop.writer),
        source=reader.name,
        frames_in=loop.frames_in,
        fps_source=reader.fps,
        width=fit.width,
        height=fit.height,
        source_width=reader.width,
        source_height=reader.height,
        sigmas=settings.sigmas,
        conditioning=settings.conditioning,
        store=settings.resolved_store(job.pipe.transformer.dtype),
        damage=reader.damage,
        interrupted=loop.interrupted,
        warnings=_warnings(reader, loop),
        control=edit.control_report(),
    )


def _differences(run: RunReport, full: RunReport, comparison: Comparison) -> dict[str, Any]:
    """What only a comparison knows."""

    def ratio(*stages: str) -> float | None:
        spent = sum(run.seconds[stage] for stage in stages)
        return sum(full.seconds[stage] for stage in stages) / spent if spent else None

    return {
        "full": full,
        "speedup_total": ratio("total"),
        "speedup_denoise": ratio(*DENOISING_STAGES),
        "psnr_vs_full_db": comparison.likeness.db,
        "worst_patch": comparison.patches.levels,
        "worst_patch_seed": comparison.seeds.levels,
        "flicker_source": comparison.flicker.source_level,
        "static_share": comparison.flicker.still_share,
    }


def _warnings(reader: VideoReader, loop: FileLoop) -> tuple[str, ...]:
    messages, writer = list(reader.notes), loop.writer
    if reader.damage is not None:
        messages.append(f"a part of {reader.name} was lost: {reader.damage}")
    if reader.fell_silent:
        messages.append(f"{reader.name} ended because nothing came for {reader.source.timeout:g} s")
    messages += writer.losses
    if writer.gaps:
        messages.append(
            f"{writer.name} is in a format without times: {writer.gaps} "
            f"gap{'' if writer.gaps == 1 else 's'} between frames were closed"
        )
    controls = loop.runs[0].stream.control_state
    if controls is not None:
        messages += controls.warnings()
    if loop.closed is not None:
        messages.append(f"{loop.closed} after {writer.frames_written} frames")
    return tuple(messages)
