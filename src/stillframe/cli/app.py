"""The command line: arguments in, exit codes out.

torch is imported by commands that need it, so that ``--help`` answers at once. Exit codes: 0 done
(perhaps with a warning), 2 refused with one sentence, 130 interrupted, 141 stopped because nobody
reads the output any more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stillframe.cli.arguments import (
    build_method,
    check_files,
    kept_clean,
    known_store,
    named_places,
    placed_prompt,
)
from stillframe.cli.bench import bench
from stillframe.cli.control import (
    CutsByOption,
    CutsOption,
    DetectorOption,
    GopOption,
    MasksInOption,
    MasksOutOption,
    RefreshOption,
    RoiInvertOption,
    RoiModeOption,
    RoiOption,
    Tau1Option,
    Tau2Option,
    ToleranceOption,
    build_control,
    detector_of_method,
)
from stillframe.cli.eval import evaluate_command, reproduce_command
from stillframe.cli.generate import generate
from stillframe.cli.listings import demo, methods, styles
from stillframe.cli.models import models_app
from stillframe.cli.options import (
    MOST_FRAMES,
    AttentionOption,
    CrfOption,
    DeviceOption,
    DtypeOption,
    ExecutionOption,
    HeightOption,
    LoadOptions,
    LoraOption,
    ModelOption,
    OffloadOption,
    ProductsOption,
    QuietOption,
    ReportOption,
    SeedOption,
    SigmasOption,
    StepsOption,
    StoreOption,
    ThreadsOption,
    VaeOption,
    WidthOption,
    load,
    number,
    parse_sigmas,
)
from stillframe.cli.rate import (
    GuardOption,
    GuardTargetOption,
    RateLimitOption,
    RateModeOption,
    TargetFpsOption,
    TargetKeptOption,
    TargetLatencyOption,
    TraceInOption,
    TraceOutOption,
    TwoPassOption,
)
from stillframe.cli.screen import (
    READER_GONE,
    Interruption,
    edit_progress,
    one_sentence_errors,
    say,
    summary,
    warn,
)
from stillframe.cli.serve import serve
from stillframe.untrusted.printable import printable

__all__ = ["app"]


class _Commands(TyperGroup):
    """Commands whose complaints about arguments show these as text."""

    def make_context(self, *args: Any, **given: Any) -> Any:
        """See click."""
        with _printable_complaints():
            return super().make_context(*args, **given)

    def invoke(self, ctx: Any) -> Any:
        """See click."""
        with _printable_complaints():
            return super().invoke(ctx)


@contextmanager
def _printable_complaints() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # click's, which newer releases of typer have a copy of
        told: Any = error
        if hasattr(told, "format_message"):
            told.message = printable(told.message)
        raise


app = typer.Typer(
    cls=_Commands,
    help="Restyle video, recomputing only what moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"stillframe {version('stillframe')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Restyle video, recomputing only what moves."""


@app.command()
def edit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="The video to edit: a file, a folder of pictures or frames/%04d.png, "
            "a URL, a camera, or - for stdin.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="What to write: a file, out/%04d.png, a URL, or - for stdout.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What it should look like.")] = None,
    style: Annotated[str | None, typer.Option(help="A style of the model, by name.")] = None,
    model: ModelOption = "tiny",
    method: Annotated[str, typer.Option(help="Which patches to compute.")] = "prune",
    recovery: Annotated[
        str | None, typer.Option(help="What stands in for the others in attention.")
    ] = None,
    store: StoreOption = "auto",
    tolerance: ToleranceOption = None,
    tau1: Tau1Option = None,
    tau2: Tau2Option = None,
    rate: Annotated[
        float | None, number(most=1, help="Share of tokens to save, for methods that have one.")
    ] = None,
    conditioning: Annotated[str | None, typer.Option(help="source or sdedit.")] = None,
    strength: Annotated[
        float | None, number(most=1, help="Share of noise at the first pass, above 0 up to 1.")
    ] = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    gop: GopOption = None,
    refresh: RefreshOption = None,
    cuts: CutsOption = False,
    cuts_by: CutsByOption = "latents",
    detector: DetectorOption = None,
    roi: RoiOption = None,
    roi_mode: RoiModeOption = "always",
    roi_invert: RoiInvertOption = False,
    masks_in: MasksInOption = None,
    masks_out: MasksOutOption = None,
    target_fps: TargetFpsOption = None,
    target_latency: TargetLatencyOption = None,
    target_kept: TargetKeptOption = None,
    rate_mode: RateModeOption = None,
    rate_limit: RateLimitOption = None,
    rate_trace_in: TraceInOption = None,
    rate_trace_out: TraceOutOption = None,
    two_pass: TwoPassOption = False,
    guard: GuardOption = None,
    guard_target: GuardTargetOption = None,
    seed: SeedOption = 0,
    height: HeightOption = None,
    width: WidthOption = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=MOST_FRAMES, help="Stop after so many frames.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vae: VaeOption = None,
    lora: LoraOption = None,
    attention: AttentionOption = None,
    offload: OffloadOption = False,
    execution: ExecutionOption = "auto",
    products: ProductsOption = "exact",
    threads: ThreadsOption = None,
    crf: CrfOption = 18,
    map_path: Annotated[
        Path | None, typer.Option("--map", help="Write a video of what was recomputed.")
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(help="FFmpeg's name of what comes in, if it cannot be told: y4m, v4l2."),
    ] = None,
    output_format: Annotated[
        str | None, typer.Option(help="Of stdout or a URL: y4m, mpegts, matroska or flv.")
    ] = None,
    input_timeout: Annotated[
        float, number(most=86400, help="Seconds of silence after which a URL counts as dead.")
    ] = 10.0,
    background: Annotated[
        str, typer.Option(help="What transparent pictures are shown on: black or white.")
    ] = "black",
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=256, max=2**31 - 1, help="Refuse larger pictures: 35389440 (8192x4320) by default."
        ),
    ] = None,
    report: ReportOption = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also edit without pruning, with two seeds, and report the differences.",
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Edit a video file or stream."""
    with one_sentence_errors(), ExitStack() as stack:
        read, written = named_places(
            source, input_format, input_timeout, out, output_format, background, max_pixels
        )
        check_files(read, written, map_path, report, masks_out)
        written = stack.enter_context(kept_clean(written))
        levels = parse_sigmas(sigmas)
        text, placed, doubts = placed_prompt(model, prompt, style)
        chosen = build_method(
            method, recovery=recovery, tolerance=tolerance, tau1=tau1, tau2=tau2, rate=rate,
            detector=detector_of_method(detector, tau1, tau2),
        )  # fmt: skip
        control = build_control(
            chosen, gop=gop, refresh=refresh, cuts=cuts, roi=roi, roi_mode=roi_mode,
            roi_invert=roi_invert, masks_in=masks_in, detector=detector, cuts_by=cuts_by,
            source=read, frames=frames, target_fps=target_fps, target_latency=target_latency,
            target_kept=target_kept, rate_mode=rate_mode, rate_limit=rate_limit,
            rate_trace_in=rate_trace_in, rate_trace_out=rate_trace_out, two_pass=two_pass,
            guard=guard, guard_target=guard_target,
        )  # fmt: skip
        for doubt in doubts:
            warn(doubt)
        started = time.perf_counter()
        options = LoadOptions(
            model, device, dtype, threads, vae, tuple(lora or ()), attention, offload, height,
            width, chosen.recovery if chosen.prunes else "none", compare, prompt=text,
            store=known_store(store),
        )  # fmt: skip
        pipe = load(options)
        loaded = time.perf_counter() - started
        from stillframe.jobs.edit import edit_file

        with Interruption() as interrupted, edit_progress(quiet) as show:
            done = edit_file(
                pipe,
                read,
                written,
                prompt=text,
                method=chosen,
                seed=seed,
                height=height,
                width=width,
                max_frames=frames,
                crf=crf,
                compare=compare,
                map_path=map_path,
                control=control,
                masks_out=masks_out,
                two_pass=two_pass,
                rate_trace_out=rate_trace_out,
                model=model,
                load_seconds=loaded,
                on_progress=show,
                stop=interrupted,
                strength=strength,
                num_inference_steps=steps,
                sigmas=levels,
                conditioning=conditioning,
                store=store,
                execution=execution,
                products=products,
            )
        for warning in done.warnings:
            warn(warning)
        done = dataclasses.replace(done, style=placed, warnings=(*doubts, *done.warnings))
        if report is not None and done.frames_out:
            done.write(report)
        if done.interrupted or not quiet:
            for line in summary(done):
                say(line, stderr=written.kind == "pipe")
        if done.interrupted:
            raise typer.Exit(interrupted.code if interrupted() else READER_GONE)


app.command()(generate)
app.command()(serve)
app.command()(bench)
app.command()(styles)
app.command()(methods)
app.command()(demo)
app.command("eval")(evaluate_command)
app.command("reproduce")(reproduce_command)


app.add_typer(models_app, name="models")
