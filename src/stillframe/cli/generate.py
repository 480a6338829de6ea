"""``stillframe generate``: a video file from a prompt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from stillframe.cli.command import Given, takes
from stillframe.cli.interruption import Interruption
from stillframe.cli.options import (
    FRAMES,
    LOADING,
    MODEL,
    OUTPUT,
    QUIET,
    RESULT,
    SIZE,
    YES,
    part,
)
from stillframe.cli.parallel import PARALLEL, loaded, only_follow
from stillframe.cli.replacing import ask_to_replace
from stillframe.cli.screen import edit_progress, say
from stillframe.config import OPTIONS, EditConfig
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.generate import GenerateReport

__all__ = ["generate"]

_DENOISING = ("seed", "steps", "sigmas", "execution", "products", "cache")

_OPTIONS = {
    "out": Option("path", "Write this file.", metavar="OUT", required=True, short="o"),
    "prompt": Option("str", "Say what to show.", metavar="TEXT", required=True),
    **MODEL,
    "frames": Option(
        "int", "Make so many frames; 81 by default.", metavar="N", least=1, most=FRAMES
    ),
    "seconds": Option("float", "Make so many seconds, instead of --frames.", above=0, most=86400),
    "height": SIZE["height"],
    **YES,
    **QUIET,
    **part(OPTIONS, _DENOISING),
    "width": SIZE["width"],
    "fps": Option(
        "float",
        "Show so many frames a second.",
        default=16.0,
        metavar="FPS",
        least=1,
        most=1000,
        group=RESULT,
    ),
    **OUTPUT,
    **LOADING,
    **PARALLEL,
}


@takes(_OPTIONS)
def generate(given: Given) -> None:
    """Make a video file from a prompt."""
    if only_follow(given):
        return
    from stillframe.jobs.outputs import check_outputs

    check_outputs(None, given["out"], None, given["report"])
    ask_to_replace([given["out"], given["report"]], given["yes"])
    from stillframe.loading.prompts import clean_prompt

    prompt = clean_prompt(given["prompt"])
    config = EditConfig.from_options(part(given, _DENOISING))
    started = time.perf_counter()
    with loaded(given, generate=True, prompts=(prompt,)) as pipe:
        load_seconds = time.perf_counter() - started
        from stillframe.jobs.generate import generate_file

        with Interruption() as interrupted, edit_progress(given["quiet"], "generating") as show:
            done = generate_file(
                pipe, given["out"], prompt=prompt, num_frames=given["frames"],
                seconds=given["seconds"], fps=given["fps"], height=given["height"],
                width=given["width"], crf=given["crf"], config=config, model=given["model"],
                load_seconds=load_seconds, on_progress=show, stop=interrupted,
            )  # fmt: skip
    if given["report"] is not None and done.frames_out:
        done.write(given["report"])
    if done.interrupted or not given["quiet"]:
        say(_summary(done))
    if done.interrupted:
        raise typer.Exit(interrupted.code)


def _summary(report: GenerateReport) -> str:
    """What was made, in a line."""
    if not report.frames_out:
        return f"interrupted before the first block was done: {report.output} was not written"
    made = (
        f"{report.output}: {report.frames_out} frames of {report.width}x{report.height} in "
        f"{report.seconds['total']:.1f} s ({report.fps_made:.1f} FPS)"
    )
    return f"{made}, interrupted" if report.interrupted else made
