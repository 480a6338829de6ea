"""Edit a video file or stream: open it, choose the size, run the loop, complete the files, report.

The loop itself is in `loop`, what to recompute the engine's business, and how progress is shown the
caller's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple

from stillframe.autoencoders.timeline import Timeline
from stillframe.config import EditConfig
from stillframe.controls import Controls, MaskHeader, MaskRecorder, SourceFacts
from stillframe.controls.rate import Rate
from stillframe.engine.stream import BlockStats
from stillframe.errors import InputError
from stillframe.jobs.edit_report import edit_report
from stillframe.jobs.first_pass import check_two_pass, foretold
from stillframe.jobs.job import Job, fit_of
from stillframe.jobs.loop import Comparison, EditRun, FileLoop, MapVideo
from stillframe.jobs.outputs import check_outputs
from stillframe.jobs.report import Report
from stillframe.loading.device_memory import forget_peak
from stillframe.methods import Method, as_method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Sink, Source, VideoReader, VideoWriter
from stillframe.video.fit import Fit

__all__ = ["Part", "Progress", "edit_file"]

StrPath = str | PathLike[str]

#: An encoder of RGB as it is, at quality 0.
_LOSSLESS = "libx264rgb"


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
        frames_in, frames_out: frames read and written so far.
        frames_total: frames there will be, as far as the file says; None if unknown.
        fps: frames written a second since the first was read.
        kept_share: computed tokens / all tokens so far, 0 to 1; None where all always are.
        moved_share: tokens reused from another place / all tokens so far, 0 to 1.
    """

    frames_in: int
    frames_out: int
    frames_total: int | None
    fps: float
    kept_share: float | None
    moved_share: float = 0.0


class Part(NamedTuple):
    """A part of a file that is edited by itself, to be joined with others.

    Attributes:
        block: of the whole file's edit, with which it begins.
        frames: of the part; None for all to the end.
    """

    block: int
    frames: int | None


def edit_file(
    pipe: CausalWanPipeline,
    source: StrPath | Source,
    target: StrPath | Sink,
    *,
    prompt: str,
    config: EditConfig | None = None,
    height: int | None = None,
    width: int | None = None,
    max_frames: int | None = None,
    crf: int = 18,
    compare: bool = False,
    map_path: StrPath | None = None,
    masks_out: StrPath | None = None,
    two_pass: bool = False,
    rate_trace_out: StrPath | None = None,
    part: Part | None = None,
    model: str | None = None,
    load_seconds: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Report:
    """Edit a video file or stream. Presentation times and sound are kept, as far as the output
    holds them; memory does not grow with length. A stream is edited as it comes, every block is
    written as soon as it is done, and a model that is slower than its source lets it wait.

    Args:
        pipe: the model.
        source: a file; or a stream: "-" for standard input, a URL, a camera or a `Source`.
        target: a file, whose extension names its container; or "-", a URL or a `Sink`.
        prompt: what it should look like.
        config: how to edit.
        height, width: size of the output in pixels; one sets the other by the aspect ratio. Without
            both, the short side is at most the pipeline's ``default_height``, and never enlarged.
        max_frames: stop reading after so many frames.
        crf: quality of the output, 0 (lossless) to 51.
        compare: also edit without pruning, with the same noise and with that of the next seed, and
            measure the differences. Only the first result is written. Of the controls, only cuts,
            and a region that alone is edited, concern the others.
        map_path: where to write the source with recomputed patches highlighted.
        masks_out: where to write which patches were recomputed, see ``controls.GivenMasks``.
        two_pass: look at the whole file first, and spend the rate where it moves.
        rate_trace_out: where to write the times that a rate went by, see ``controls.RateTrace``.
        part: edit no more than this, with the noise that it has in the whole file, without sound
            and without loss: ``crf`` does not matter, and the target is an MKV.
        model, load_seconds: the model's name and how long it took to load, for the report.
        on_progress: called after every block.
        stop: asked after every frame, and while a pipe is silent; true ends the files cleanly with
            the blocks that are done.
        options: fields of ``config`` that take the place of its own, such as ``method``,
            ``control``, ``seed`` and ``strength``.

    Returns:
        the report. If ``stop`` came before the first block was done, ``frames_out`` is 0 and no
        file is written. If whoever reads a stream closes it, that is an interruption, too.

    Raises:
        InputError: the source cannot be used, or given masks are not of its size and length.
        OutputError: a result cannot be written; nothing half-written is left.
        OutputClosedError: nobody reads the stream from the start.
        KeyboardInterrupt: ``stop`` came before the source's first frame.
        ValueError: an argument is out of range.
    """
    config = EditConfig.of(config, options).seeded
    method, control, seed = as_method(config.method), config.control, config.seed or 0
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"at least 1 frame must be edited, got {max_frames}")
    source, target = Source.of(source), Sink.of(target)
    check_outputs(source, target, map_path, masks_out, rate_trace_out)
    _check_rate(control, source, two_pass, rate_trace_out)
    started = time.perf_counter()
    with ExitStack() as stack:
        motion = control is not None and any(each.needs_motion for each in control)
        begin = 0
        if part is not None:
            begin, max_frames = part.block * pipe.timeline.later_frames, part.frames
        reader = stack.enter_context(_open_reader(source, stop, motion, max_frames, begin))
        fit = fit_of(pipe, reader, height, width)
        header = _mask_header(pipe, fit, method)
        control = _fitted(control, fit, header, replace(pipe.timeline, fps=reader.fps))
        if two_pass and control is not None:
            control = foretold(pipe, source, fit, method, control, max_frames, stop)
        embeds = pipe.encode_prompt(prompt)
        load_seconds += time.perf_counter() - started
        codec = None if part is None else _LOSSLESS
        opened = _open_writer(target, reader, fit, crf, sound=part is None, stop=stop, codec=codec)
        writer = stack.enter_context(opened)
        map_video = None
        if map_path is not None:
            map_writer = _open_writer(map_path, reader, fit, crf, sound=False)
            map_video = MapVideo(pipe, stack.enter_context(map_writer))
        recorder = None if masks_out is None else MaskRecorder()
        config = replace(config, control=control)
        blocks = 0 if part is None else part.block
        runs = [EditRun(pipe, embeds, config, _noting(map_video, recorder), blocks)]
        if compare:
            runs += [EditRun(pipe, embeds, dense) for dense in _compared(config, seed)]
        comparison = Comparison(pipe.timeline.decoded_from(1)) if compare else None
        loop = FileLoop(fit, pipe.compute_device, runs, writer, map_video, comparison)
        forget_peak(pipe.compute_device)
        loop.run(iter(reader), stop, _progress(on_progress, loop, reader, max_frames))
        loop.close()
        if masks_out is not None and recorder is not None and writer.frames_written:
            recorder.masks(replace(header, frames=writer.frames_written)).write(masks_out)
        if rate_trace_out is not None:
            runs[0].write_rate_trace(rate_trace_out)
        job = Job(pipe, model, prompt, seed, load_seconds)
        return edit_report(job, reader, fit, loop, comparison)


def _check_rate(
    control: Controls | None, source: Source, two_pass: bool, trace: StrPath | None
) -> None:
    """Raise a ValueError for two passes or a trace where no rate asks for them."""
    if trace is not None and (control is None or control.find(Rate) is None):
        raise ValueError(f"{trace} would be empty: there is no rate to write a trace of")
    if two_pass:
        check_two_pass(source, control)


def _noting(
    map_video: MapVideo | None, recorder: MaskRecorder | None
) -> Callable[[BlockStats], None]:
    """What a run calls after every block."""

    def note(stats: BlockStats) -> None:
        if map_video is not None:
            map_video.note(stats)
        if recorder is not None:
            recorder.add(stats.keep, stats.motion)

    return note


def _compared(config: EditConfig, seed: int) -> list[EditConfig]:
    """The edits that a pruned one is compared with: all of it computed, with two seeds."""
    control = None if config.control is None else config.control.unpruned
    full = replace(config, method="full", control=control)
    return [replace(full, seed=seed), replace(full, seed=seed + 1)]


def _mask_header(pipe: CausalWanPipeline, fit: Fit, method: Method) -> MaskHeader:
    """What masks of an edit are of."""
    patch = pipe.frame_multiple
    return MaskHeader(
        pipe.timeline.block_frames,
        fit.padded_height // patch,
        fit.padded_width // patch,
        patch,
        pipe.timeline.temporal,
        tolerance=getattr(method, "tolerance", None) if method.visible else None,
        motion=method.motion if method.prunes else None,
        tau1=getattr(method, "tau1", None) if method.prunes else None,
        tau2=method.tau2 if method.prunes and not method.visible else None,
    )


def _fitted(
    control: Controls | None, fit: Fit, header: MaskHeader, timeline: Timeline
) -> Controls | None:
    """The control for frames of this size.

    Raises:
        InputError: it has masks of another grid.
    """
    if control is None:
        return None
    extent = (fit.width / fit.padded_width, fit.height / fit.padded_height)
    size = fit.source_width, fit.source_height
    return control.fitted(SourceFacts(*size, extent, timeline, header.grid, header.patch))


def _open_reader(
    source: Source,
    stop: Callable[[], bool] | None,
    motion: bool,
    max_frames: int | None,
    first_frame: int,
) -> VideoReader:
    try:
        return VideoReader(
            source, stop=stop, motion=motion, max_frames=max_frames, first_frame=first_frame
        )
    except InputError as error:
        if stop is not None and stop():
            raise KeyboardInterrupt from error
        raise


def _open_writer(
    path: StrPath | Sink,
    reader: VideoReader,
    fit: Fit,
    crf: int,
    *,
    sound: bool,
    stop: Callable[[], bool] | None = None,
    codec: str | None = None,
) -> VideoWriter:
    """A writer of frames that are timed and shaped as the reader's."""
    with warnings.catch_warnings():
        # the report says that the sound cannot be kept
        warnings.simplefilter("ignore", UserWarning)
        return VideoWriter(
            path,
            fit.width,
            fit.height,
            reader.time_base,
            reader.fps,
            codec=codec,
            crf=crf if codec is None else 0,
            sample_aspect_ratio=reader.sample_aspect_ratio,
            audio_from=reader if sound else None,
            stop=stop,
        )


def _progress(
    on_progress: Callable[[Progress], None] | None,
    loop: FileLoop,
    reader: VideoReader,
    max_frames: int | None,
) -> Callable[[], None] | None:
    """What the loop calls after every block, None without a callback."""
    if on_progress is None:
        return None
    started = time.perf_counter()
    known = [count for count in (reader.frames_estimate, max_frames) if count is not None]
    total = min(known) if reader.frames_estimate is not None else None

    def call() -> None:
        out, run = loop.writer.frames_written, loop.runs[0]
        fps = out / max(time.perf_counter() - started, 1e-9)
        shares = run.kept_share, run.moved_share
        on_progress(Progress(loop.frames_in, out, total, fps, *shares))

    return call
