"""``stillframe edit``: a video file or stream, edited into another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.interruption import Interruption
from stillframe.cli.options import (
    FRAMES,
    LOADING,
    MODEL,
    OUTPUT,
    PROMPT,
    QUIET,
    RESULT,
    SIZE,
    STREAM,
    YES,
    part,
)
from stillframe.cli.parallel import PARALLEL, loaded, only_follow
from stillframe.cli.replacing import ask_to_replace
from stillframe.cli.screen import READER_GONE, edit_progress, say, summary, warn
from stillframe.config import EditConfig, edit_options
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.report import Report
    from stillframe.loading.styles import Match
    from stillframe.pipelines.causal_wan import CausalWanPipeline
    from stillframe.video import Sink, Source

__all__ = ["edit", "placed_prompt"]

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
    **PROMPT,
    "compare": Option(
        "bool",
        "Edit without pruning as well, with two seeds, and report the differences.",
        default=False,
    ),
    "frames": Option(
        "int", "Stop after so many frames.", metavar="N", least=1, most=FRAMES, group=RESULT
    ),
    "preview": Option(
        "int",
        "Write a sheet of so many moments instead, as PNG: source, edit with everything "
        "computed, edit, map.",
        metavar="N",
        least=1,
        most=100,
        group=RESULT,
    ),
    "map": Option(
        "path",
        "Write a video of what was recomputed, and what moved.",
        metavar="FILE",
        group=RESULT,
    ),
}


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    every = {**_OWN, **MODEL, **SIZE, **OUTPUT, **edit_options(), **LOADING, **PARALLEL, **STREAM}
    rest = {name: option for name, option in every.items() if name not in _FIRST}
    return {**part(every, _FIRST), **YES, **QUIET, **rest}


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
    if only_follow(given):
        return
    with ExitStack() as stack:
        read, written, frames = _places(source, given)
        from stillframe.video import video_on_stdout

        written = stack.enter_context(video_on_stdout(written))
        text, style, doubts = placed_prompt(given["model"], given["prompt"], given["style"])
        config = _config(given, read)
        for doubt in doubts:
            warn(doubt)
        written_to = [None if written.kind != "file" else written.text, given["map"],
                      given["masks_out"], given["report"]]  # fmt: skip
        ask_to_replace(written_to, given["yes"])
        started = time.perf_counter()
        from stillframe.methods import as_method

        method = as_method(config.method)
        recovery = method.recovery if method.prunes else "none"
        task = {"recovery": recovery, "compare": given["compare"], "prompts": (text,)}
        pipe = stack.enter_context(loaded(given, method, **task, frames=frames))
        load_seconds = time.perf_counter() - started
        if given["preview"] is not None:
            _preview(pipe, read, text, config, given)
            return
        from stillframe.jobs.edit import edit_file

        with Interruption() as interrupted, edit_progress(given["quiet"]) as show:
            done = edit_file(
                pipe, read, written, prompt=text, config=config,
                height=given["height"], width=given["width"], max_frames=given["frames"],
                crf=given["crf"], compare=given["compare"], map_path=given["map"],
                masks_out=given["masks_out"], two_pass=given["two_pass"],
                rate_trace_out=given["rate_trace_out"], model=given["model"],
                load_seconds=load_seconds, on_progress=show, stop=interrupted,
            )  # fmt: skip
        for warning in done.warnings:
            warn(warning)
        done = dataclasses.replace(done, warnings=(*doubts, *done.warnings))
        if style is not None:
            done = dataclasses.replace(done, style=style.style.name, style_score=style.score)
        if given["report"] is not None and done.frames_out:
            done.write(given["report"])
        if done.interrupted or not given["quiet"]:
            for line in (*_taken_for(done, given), *summary(done)):
                say(line, stderr=written.kind == "pipe")
        if done.interrupted:
            raise typer.Exit(interrupted.code if interrupted() else READER_GONE)


def _taken_for(done: Report, given: Mapping[str, Any]) -> list[str]:
    """What a prompt was matched to, if it was."""
    if done.style_score is None or given["prompt"] is None:
        return []
    return [f"{done.prompt!r} is taken for the style {done.style}, score {done.style_score:.1f}"]


def _preview(
    pipe: CausalWanPipeline, source: Source, prompt: str, config: EditConfig, given: Given
) -> None:
    """Write the sheet, and say of each row when it is and how much of it was recomputed."""
    from stillframe.jobs.preview import Moment, preview_file

    def told(moment: Moment) -> None:
        if not given["quiet"]:
            share = f"{moment.kept_share:.0%} of the patches recomputed"
            say(f"frame {moment.frame}, at {moment.seconds:.1f} s: {share}")

    with Interruption() as interrupted:
        preview_file(
            pipe, source, given["out"], prompt=prompt, moments=given["preview"], config=config,
            height=given["height"], width=given["width"], max_frames=given["frames"],
            on_moment=told, stop=interrupted,
        )  # fmt: skip
    if interrupted():
        raise typer.Exit(interrupted.code)


def _config(given: Mapping[str, Any], source: Source) -> EditConfig:
    """How to edit, as the options say."""
    from stillframe.video.control_files import VideoControlFiles

    values = {name: given[name] for name in edit_options() if name in given}
    files = VideoControlFiles(source, given["frames"])
    return EditConfig.from_options(values, named=flag, files=files)


def _places(name: str, given: Mapping[str, Any]) -> tuple[Source, Sink, tuple[int, int] | None]:
    """The source and the sink of the names that were typed, and the source's width and height.

    What cannot be read or written is refused before anything heavy is imported; what can be read
    only once is left alone.
    """
    from stillframe.jobs.outputs import check_outputs
    from stillframe.video import Sink, Source
    from stillframe.video.formats import MAX_PIXELS

    source = Source.of(
        name, given["input_format"], given["input_timeout"], given["background"],
        given["max_pixels"] or MAX_PIXELS,
    )  # fmt: skip
    if given["preview"] is not None:
        from stillframe.jobs.preview import check_preview

        check_preview(source, given["out"])
        return source, Sink(given["out"]), _size(source)
    sink = Sink.of(given["out"], given["output_format"])
    map_path, report, masks = (given[name] for name in ("map", "report", "masks_out"))
    frames = None if source.is_live else _size(source)
    check_outputs(source, sink, map_path, report)
    check_outputs(source, sink, map_path, masks)
    if report is not None and masks is not None and report.resolve() == masks.resolve():
        raise ValueError(f"{masks} cannot be the report and the masks: choose another name")
    return source, sink, frames


def _size(source: Source) -> tuple[int, int]:
    """Width and height of a file, which can be read."""
    from stillframe.video import VideoReader

    with VideoReader(source) as reader:
        return reader.width, reader.height


def placed_prompt(
    model: str, prompt: str | None, style: str | None
) -> tuple[str, Match | None, tuple[str, ...]]:
    """The prompt for the text encoder, the style it stands for if known, and doubts about that."""
    from stillframe.loading.load import model_styles
    from stillframe.loading.prompts import clean_prompt
    from stillframe.loading.styles import Match, find, match

    if (prompt is None) == (style is None):
        raise ValueError("give either --prompt TEXT or --style NAME")
    known = model_styles(model)
    if prompt is None:
        found = find(str(style), known)
        return found.prompt, Match(found, 1.0), ()
    prompt = clean_prompt(prompt)
    placed = match(prompt, known)
    if placed is not None or not known:
        return prompt, placed, ()
    names = ", ".join(entry.name for entry in known)
    doubt = f"{prompt!r} names no style that this model has learnt; it knows {names}"
    return prompt, None, (doubt,)
