"""The command that makes video from a prompt. See `cli` for exit codes and lazy imports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from stillframe.cli.options import (
    MOST_FRAMES,
    AttentionOption,
    CrfOption,
    DeviceOption,
    DtypeOption,
    HeightOption,
    LoadOptions,
    LoraOption,
    ModelOption,
    OffloadOption,
    OutOption,
    QuietOption,
    ReportOption,
    SeedOption,
    SigmasOption,
    StepsOption,
    ThreadsOption,
    VaeOption,
    WidthOption,
    load,
    number,
    parse_sigmas,
)
from stillframe.cli.screen import Interruption, edit_progress, one_sentence_errors, say

if TYPE_CHECKING:
    from stillframe.jobs.generate import GenerateReport

__all__ = ["generate"]


def generate(
    out: OutOption,
    prompt: Annotated[str, typer.Option(help="What to show.")],
    model: ModelOption = "tiny",
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_FRAMES, help="How many frames to make; 81 by default."),
    ] = None,
    seconds: Annotated[
        float | None, number(most=86400, help="How long, instead of --frames.")
    ] = None,
    fps: Annotated[float, number(least=0.001, most=1000, help="Frame rate of the output.")] = 16,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vae: VaeOption = None,
    lora: LoraOption = None,
    attention: AttentionOption = None,
    offload: OffloadOption = False,
    threads: ThreadsOption = None,
    crf: CrfOption = 18,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make a video file from a prompt."""
    with one_sentence_errors():
        from stillframe.jobs.outputs import check_outputs
        from stillframe.loading.prompts import clean_prompt

        check_outputs(None, out, None, report)
        prompt = clean_prompt(prompt)
        levels = parse_sigmas(sigmas)
        started = time.perf_counter()
        options = LoadOptions(
            model, device, dtype, threads, vae, tuple(lora or ()), attention, offload, height,
            width, generate=True, prompt=prompt,
        )  # fmt: skip
        pipe = load(options)
        loaded = time.perf_counter() - started
        from stillframe.jobs.generate import generate_file

        with Interruption() as interrupted, edit_progress(quiet, "generating") as show:
            done = generate_file(
                pipe,
                out,
                prompt=prompt,
                num_frames=frames,
                seconds=seconds,
                fps=fps,
                height=height,
                width=width,
                seed=seed,
                crf=crf,
                num_inference_steps=steps,
                sigmas=levels,
                model=model,
                load_seconds=loaded,
                on_progress=show,
                stop=interrupted,
            )
        if report is not None and done.frames_out:
            done.write(report)
        if done.interrupted or not quiet:
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
