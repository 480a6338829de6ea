"""``stillframe edit``: a video file or stream, edited into another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.options import FRAMES, LOADING, MODEL, OUTPUT, QUIET, RESULT, SIZE, load, part
from stillframe.cli.screen import READER_GONE, Interruption, edit_progress, say, summary, warn
from stillframe.config import EditConfig, edit_options
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.video import Sink, Source

__all__ = ["edit", "placed_prompt"]

_STREAMS = "Pictures, streams and pipes"

#: What most people need, in this order.
_FIRST = ("out", "prompt", "style", "model", "method", "tolerance", "strength", "height", "compare")

_OWN = {
    "out": Option(
        "str",
        "Write this: a file, out/%04d.png, a URL, or - for stdout.",
        metavar="OUT",
        required=True,
        short="o",
    ),
    "prompt": Option("str", "Say what the result should look like.", metavar="TEXT"),
    "style": Option("str", "Use a style of the model: `stillframe styles` lists them."),
    "compare": Option(
        "bool",
        "Edit without pruning as well, with two seeds, and report the differences.",
        default=False,
    ),
    "frames": Option(
        "int", "Stop after so many frames.", metavar="N", least=1, most=FRAMES, group=RESULT
    ),
    "map": Option(
        "path",
        "Write a video of what was recomputed, and what moved.",
        metavar="FILE",
        group=RESULT,
    ),
}
_STREAM = {
    "input_format": Option(
        "str",
        "Read a stream as this format of FFmpeg's where it cannot be told: y4m, v4l2.",
        metavar="NAME",
        group=_STREAMS,
    ),
    "output_format": Option(
        "str",
        "Write stdout or a URL in this format: y4m, mpegts, matroska or flv.",
        metavar="NAME",
        group=_STREAMS,
    ),
    "input_timeout": Option(
        "float",
        "Give up a URL after so many seconds of silence.",
        default=10.0,
        metavar="SECONDS",
        above=0,
        most=86400,
        group=_STREAMS,
    ),
    "max_pixels": Option(
        "int",
        "Refuse larger pictures: 35389440 pixels (8192x4320) by default.",
        metavar="PIXELS",
        least=256,
        most=2**31 - 1,
        group=_STREAMS,
    ),
    "background": Option(
        "str",
        "Show transparent pictures on this colour.",
        default="black",
        choices=("black", "white"),
        group=_STREAMS,
    ),
}


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    every = {**_OWN, **MODEL, **SIZE, **OUTPUT, **edit_options(), **LOADING, **_STREAM}
    rest = {name: option for name, option in every.items() if name not in _FIRST}
    return {**part(every, _FIRST), **QUIET, **rest}


@takes(options)
def edit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="The video to edit: a file, a folder of pictures or frames/%04d.png, "
            "a URL, a camera, or - for stdin.",
        ),
    ],
    given: Given,
) -> None:
    """Edit a video file or stream."""
    with ExitStack() as stack:
        read, written = _places(source, given)
        from stillframe.video import video_on_stdout

        written = stack.enter_context(video_on_stdout(written))
        text, style, doubts = placed_prompt(given["model"], given["prompt"], given["style"])
        config = _config(given, read)
        for doubt in doubts:
            warn(doubt)
        started = time.perf_counter()
        from stillframe.methods import as_method

        method = as_method(config.method)
        recovery = method.recovery if method.prunes else "none"
        pipe = load(given, recovery=recovery, compare=given["compare"], prompt=text)
        loaded = time.perf_counter() - started
        from stillframe.jobs.edit import edit_file

        with Interruption() as interrupted, edit_progress(given["quiet"]) as show:
            done = edit_file(
                pipe, read, written, prompt=text, config=config,
                height=given["height"], width=given["width"], max_frames=given["frames"],
                crf=given["crf"], compare=given["compare"], map_path=given["map"],
                masks_out=given["masks_out"], two_pass=given["two_pass"],
                rate_trace_out=given["rate_trace_out"], model=given["model"],
                load_seconds=loaded, on_progress=show, stop=interrupted,
            )  # fmt: skip
        for warning in done.warnings:
            warn(warning)
        done = dataclasses.replace(done, style=style, warnings=(*doubts, *done.warnings))
        if given["report"] is not None and done.frames_out:
            done.write(given["report"])
        if done.interrupted or not given["quiet"]:
            for line in summary(done):
                say(line, stderr=written.kind == "pipe")
        if done.interrupted:
            raise typer.Exit(interrupted.code if interrupted() else READER_GONE)


def _config(given: Mapping[str, Any], source: Source) -> EditConfig:
    """How to edit, as the options say."""
    from stillframe.video.control_files import VideoControlFiles

    values = {name: given[name] for name in edit_options() if name in given}
    files = VideoControlFiles(source, given["frames"])
    return EditConfig.from_options(values, named=flag, files=files)


def _places(name: str, given: Mapping[str, Any]) -> tuple[Source, Sink]:
    """The source and the sink of the names that were typed.

    What cannot be read or written is refused before anything heavy is imported; what can be read
    only once is left alone.
    """
    from stillframe.jobs.outputs import check_outputs
    from stillframe.video import Sink, Source, VideoReader
    from stillframe.video.formats import MAX_PIXELS

    source = Source.of(
        name, given["input_format"], given["input_timeout"], given["background"],
        given["max_pixels"] or MAX_PIXELS,
    )  # fmt: skip
    sink = Sink.of(given["out"], given["output_format"])
    map_path, report, masks = (given[name] for name in ("map", "report", "masks_out"))
    if not source.is_live:
        VideoReader(source).close()
    check_outputs(source, sink, map_path, report)
    check_outputs(source, sink, map_path, masks)
    if report is not None and masks is not None and report.resolve() == masks.resolve():
        raise ValueError(f"{masks} cannot be the report and the masks: choose another name")
    return source, sink


def placed_prompt(
    model: str, prompt: str | None, style: str | None
) -> tuple[str, str | None, tuple[str, ...]]:
    """The prompt for the text encoder, the style it stands for if known, and doubts about that."""
    from stillframe.loading.load import model_styles
    from stillframe.loading.prompts import clean_prompt
    from stillframe.loading.styles import find, place

    if (prompt is None) == (style is None):
        raise ValueError("give either --prompt TEXT or --style NAME")
    known = model_styles(model)
    if prompt is None:
        found = find(str(style), known)
        return found.prompt, found.name, ()
    prompt = clean_prompt(prompt)
    placed = place(prompt, known)
    if placed is not None or not known:
        return prompt, None if placed is None else placed.name, ()
    names = ", ".join(entry.name for entry in known)
    doubt = f"{prompt!r} names no style that this model has learnt; it knows {names}"
    return prompt, None, (doubt,)
