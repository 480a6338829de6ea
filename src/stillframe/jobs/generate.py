"""Make a video file from a prompt: open the stream, write the frames as they come, report.

How video is made is the pipeline's business, and how progress is shown the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from os import PathLike
from typing import Any

from stillframe.config import EditConfig
from stillframe.engine.stream import BlockStats, StageClock
from stillframe.jobs.edit import Progress
from stillframe.jobs.job import Job
from stillframe.jobs.outputs import check_outputs
from stillframe.jobs.report import write_json
from stillframe.loading.device_memory import forget_peak
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.pipelines.generation import GenerateStream
from stillframe.video import VideoWriter
from stillframe.video.fit import fit_to_grid

__all__ = ["GENERATE_STAGES", "GenerateReport", "generate_file"]

StrPath = str | PathLike[str]

#: What ``seconds["total"]`` is the sum of, in the order of the work.
GENERATE_STAGES = ("denoise", "context", "decode", "write")
#: Length where nobody asks for one: what the published models were trained on.
FRAMES = 81


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What a video made from a prompt is, and what it cost.

    Attributes:
        stillframe: version of the program.
        output: the file.
        frames_out: frames in it; 0 if there is none because of an interruption.
        fps: frame rate of the file.
        width, height: in pixels.
        model, prompt, seed: what it was made from.
        device, dtype: where, and in which number format.
        sigmas: noise level of each denoising pass.
        window_frames, sink_frames: latent frames that attention saw.
        seconds: wall time by stage (`GENERATE_STAGES`), ``total`` their sum; and ``load``.
        fps_made: frames out / total seconds.
        cache_bytes: keys and values of committed frames.
        peak_memory_bytes: torch's on a GPU, the process's on a CPU; None if unknown.
        interrupted: whether ``stop`` came before all frames were made.
    """

    stillframe: str
    output: str
    frames_out: int
    fps: float
    width: int
    height: int
    model: str
    prompt: str
    seed: int
    device: str
    dtype: str
    sigmas: tuple[float, ...]
    window_frames: int
    sink_frames: int
    seconds: dict[str, float]
    fps_made: float
    cache_bytes: int
    peak_memory_bytes: int | None
    interrupted: bool

    def write(self, path: StrPath) -> None:
        """Write the report as JSON; the file is complete or not there.

        Raises:
            OutputError: it cannot be written.
        """
        write_json(asdict(self), path)


def generate_file(
    pipe: CausalWanPipeline,
    target: StrPath,
    *,
    prompt: str,
    num_frames: int | None = None,
    seconds: float | None = None,
    fps: float | Fraction = 16,
    height: int | None = None,
    width: int | None = None,
    crf: int = 18,
    config: EditConfig | None = None,
    model: str | None = None,
    load_seconds: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> GenerateReport:
    """Make a video file from a prompt. Memory does not grow with its length.

    Args:
        pipe: the model.
        target: file; its extension names the container.
        prompt: what to show.
        num_frames, seconds: how long, one or the other; default 81 frames.
        fps: frame rate of the file; Wan's models make 16 frames a second.
        height, width: in pixels, see ``CausalWanPipeline.generate_stream``.
        crf: quality of the output, 0 (lossless) to 51.
        config: how to denoise, see ``CausalWanPipeline.generate_stream``.
        model, load_seconds: the model's name and how long it took to load, for the report.
        on_progress: called after every block.
        stop: asked before every block; true ends the file cleanly with the blocks that are done.
        options: fields of ``config`` that take the place of its own, such as ``seed``.

    Returns:
        the report. If ``stop`` came before the first block, ``frames_out`` is 0 and no file is
        written.

    Raises:
        OutputError: the result cannot be written; nothing half-written is left.
        ValueError: an argument is out of range.
    """
    config = EditConfig.of_generation(config, options).seeded
    check_outputs(None, target)
    rate = _rate(fps)
    count = _count(num_frames, seconds, rate)
    started = time.perf_counter()
    spent = dict.fromkeys(GENERATE_STAGES, 0.0)

    def on_block(stats: BlockStats) -> None:
        for stage in GENERATE_STAGES:
            spent[stage] += stats.seconds.get(stage, 0.0)

    stream = pipe.generate_stream(
        prompt,
        num_frames=count,
        height=height,
        width=width,
        config=config,
        on_block=on_block,
    )
    load_seconds += time.perf_counter() - started
    forget_peak(pipe.compute_device)
    clock = StageClock()
    with VideoWriter(target, stream.width, stream.height, 1 / rate, rate, crf=crf) as writer:
        interrupted = _write_all(stream, writer, count, clock, on_progress, stop)
        with clock("write"):
            writer.close(keep=writer.frames_written > 0 or not interrupted)
    spent["write"] = clock.lap()["write"]
    job = Job(pipe, model, prompt, config.seed or 0, load_seconds)
    return _report(job, rate, stream, writer, spent, interrupted)


def _rate(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction that keeps 24000/1001 and its kin exact."""
    if not 1 <= fps <= 1000:
        raise ValueError(f"fps must be 1 to 1000, got {fps}")
    return Fraction(fps).limit_denominator(1001)


def _count(num_frames: int | None, seconds: float | None, rate: Fraction) -> int:
    """How many frames to make."""
    if num_frames is not None and seconds is not None:
        raise ValueError(f"give either frames, {num_frames}, or seconds, {seconds}")
    if seconds is not None:
        if not 0 < seconds < 1e6:
            raise ValueError(f"seconds must be above 0 and below 1000000, got {seconds}")
        return max(round(seconds * rate), 1)
    return FRAMES if num_frames is None else num_frames


def _write_all(
    stream: GenerateStream,
    writer: VideoWriter,
    count: int,
    clock: StageClock,
    on_progress: Callable[[Progress], None] | None,
    stop: Callable[[], bool] | None,
) -> bool:
    """Make and write ``count`` frames; returns whether ``stop`` cut them short."""
    started = time.perf_counter()
    fit = fit_to_grid(stream.width, stream.height, multiple=1)
    while stream.frames_left:
        if stop is not None and stop():
            return True
        frames = next(stream)
        with clock("write"):
            for pixels in fit.from_grid(frames[0]).cpu().numpy():
                writer.write(pixels, writer.frames_written)
        done = writer.frames_written
        if on_progress is not None:
            fps = done / max(time.perf_counter() - started, 1e-9)
            on_progress(Progress(done, done, count, fps, None))
    return False


def _report(
    job: Job,
    rate: Fraction,
    stream: GenerateStream,
    writer: VideoWriter,
    spent: dict[str, float],
    interrupted: bool,
) -> GenerateReport:
    total = sum(spent.values())
    return GenerateReport(
        **job.facts(writer),
        fps=float(rate),
        width=stream.width,
        height=stream.height,
        sigmas=stream.settings.sigmas,
        window_frames=stream.settings.window_frames,
        sink_frames=stream.settings.sink_frames,
        seconds={"load": job.load_seconds, **spent, "total": total},
        fps_made=writer.frames_written / total if total else 0.0,
        cache_bytes=stream.memory["cache"],
        interrupted=interrupted,
    )
