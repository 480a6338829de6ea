"""The report of an edit, put together from what the loop, the files and the device say of it.

It does not know how a report is written or shown: fields are those of ``stillframe.jobs.report``.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

from stillframe.jobs.loop import Comparison, FileLoop
from stillframe.jobs.report import DENOISING_STAGES, Report, RunReport
from stillframe.loading.device_memory import peak_memory
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoReader
from stillframe.video.fit import Fit

__all__ = ["EditJob", "edit_report"]


class EditJob(NamedTuple):
    """What was asked for: ``load_seconds`` is how long the model took to load."""

    pipe: CausalWanPipeline
    prompt: str
    seed: int
    model: str
    load_seconds: float


def edit_report(
    job: EditJob, reader: VideoReader, fit: Fit, loop: FileLoop, comparison: Comparison | None
) -> Report:
    """The report of an edit whose files are complete.

    Args:
        job: what was asked for.
        reader, fit, loop: what it was done with; the first of the loop's lanes is the edit.
        comparison: to the second lane, None if there was none.
    """
    files = loop.clock.lap()
    frames = loop.writer.frames_written
    flickers = (None, None) if comparison is None else comparison.flicker.levels
    runs = [lane.report(files, frames, f) for lane, f in zip(loop.lanes, flickers, strict=False)]
    runs[0].seconds["load"] = job.load_seconds
    settings = loop.lanes[0].stream.settings
    return Report(
        **{name: getattr(runs[0], name) for name in asdict(runs[0])},
        **({} if comparison is None else _differences(runs[0], runs[1], comparison)),
        stillframe=version("stillframe"),
        source=reader.name,
        output=loop.writer.name,
        frames_in=loop.frames_in,
        frames_out=frames,
        fps_source=reader.fps,
        width=fit.width,
        height=fit.height,
        source_width=reader.width,
        source_height=reader.height,
        model=job.model,
        prompt=job.prompt,
        device=str(job.pipe.compute_device),
        dtype=str(job.pipe.transformer.dtype).removeprefix("torch."),
        seed=job.seed,
        sigmas=settings.sigmas,
        conditioning=settings.conditioning,
        store=settings.resolved_store(job.pipe.transformer.dtype),
        peak_memory_bytes=peak_memory(job.pipe.compute_device),
        damage=reader.damage,
        interrupted=loop.interrupted,
        warnings=_warnings(reader, loop),
        control=loop.lanes[0].control_report(),
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
    told, writer = list(reader.notes), loop.writer
    if reader.damage is not None:
        told.append(f"a part of {reader.name} was lost: {reader.damage}")
    if reader.fell_silent:
        told.append(f"{reader.name} ended because nothing came for {reader.source.timeout:g} s")
    told += writer.losses
    if writer.gaps:
        told.append(
            f"{writer.name} is in a format without times: {writer.gaps} "
            f"gap{'' if writer.gaps == 1 else 's'} between frames were closed"
        )
    controls = loop.lanes[0].stream.control_state
    if controls is not None:
        told += controls.warnings()
    if loop.closed is not None:
        told.append(f"{loop.closed} after {writer.frames_written} frames")
    return tuple(told)
