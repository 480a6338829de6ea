"""The commands that measure: ``eval``, a matrix of one's own, and ``reproduce``, the experiments.

Arguments in, a folder out; what is run is in ``evaluation``. See `cli` for exit codes and lazy
imports. A run that was interrupted goes on where it was when it is called again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillframe.cli.options import (
    MOST_FRAMES,
    DeviceOption,
    DtypeOption,
    HeightOption,
    LoadOptions,
    ModelOption,
    OffloadOption,
    QuietOption,
    ThreadsOption,
    VaeOption,
    WidthOption,
    load,
)
from stillframe.cli.screen import Interruption, one_sentence_errors, say, warn
from stillframe.untrusted.printable import printable

if TYPE_CHECKING:
    from stillframe.evaluation import Plan
    from stillframe.evaluation.sources import Clip

__all__ = ["evaluate_command", "reproduce_command"]

ClipsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CLIPS...", help="Videos, folders of videos or of pictures, or DAVIS 2017's."
    ),
]
OutFolderOption = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")]
MetricsOption = Annotated[
    str | None, typer.Option(help="Names, with commas; all that can be had by default.")
]
PromptsOption = Annotated[
    list[str] | None, typer.Option("--prompts", help="A prompt; may be repeated.")
]


def evaluate_command(
    clips: ClipsArgument,
    out: OutFolderOption,
    methods: Annotated[str, typer.Option(help="Names, with commas.")] = "prune",
    rates: Annotated[str | None, typer.Option(help="Shares of tokens to leave out: .1,.2")] = None,
    recoveries: Annotated[str | None, typer.Option(help="Names, with commas.")] = None,
    prompts: PromptsOption = None,
    seeds: Annotated[str, typer.Option(help="Of the noise: 0,1,2")] = "0",
    metrics: MetricsOption = None,
    model: ModelOption = "tiny",
    frames: Annotated[int, typer.Option(min=1, max=MOST_FRAMES, help="At most, of a clip.")] = 81,
    height: HeightOption = None,
    width: WidthOption = None,
    conditioning: Annotated[str | None, typer.Option(help="source or sdedit.")] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Time each edit beside a dense one, block by block.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vae: VaeOption = None,
    offload: OffloadOption = False,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure methods on clips: rows, a table file and an HTML report. Goes on if called again."""
    with one_sentence_errors():
        wanted = _numbers("--rates", rates), _names(recoveries)
        draws = [_whole(seed) for seed in _names(seeds)]
        found = _clips(clips)
        from stillframe.evaluation import evaluate
        from stillframe.evaluation.variants import expand

        variants = expand(_names(methods), *wanted)
        options = LoadOptions(model, device, dtype, threads, vae, (), None, offload, height, width)
        with _planned(options, found, out, metrics, quiet) as plan:
            rows = evaluate(
                plan,
                variants,
                prompts=prompts or _usual_prompts(plan)[:1],
                seeds=draws,
                frames=frames,
                height=height,
                width=width,
                conditioning=conditioning,
                paired=speed,
            )
        failed = [row for row in rows if row.error is not None]
        for row in failed:
            warn(f"{row.cell.variant.label} on {row.cell.clip} failed: {row.error}")
        if not quiet:
            say(f"{out / 'report.html'}: {len(rows) - len(failed)} of {len(rows)} cells done")


def reproduce_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An experiment, several with commas, or all.")
    ],
    clips: Annotated[
        list[str], typer.Option("--clips", help="As for eval; may be repeated.", show_default=False)
    ],
    out: OutFolderOption,
    model: ModelOption = "tiny",
    frames: Annotated[
        int | None, typer.Option(min=1, max=MOST_FRAMES, help="At most, of a clip.")
    ] = None,
    height: HeightOption = None,
    width: WidthOption = None,
    most: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Clips of the larger experiments.")
    ] = None,
    prompts: PromptsOption = None,
    seeds: Annotated[int | None, typer.Option(min=2, max=10**4, help="Draws of noise.")] = None,
    rates: Annotated[str | None, typer.Option(help="Shares of tokens to leave out: .1,.2")] = None,
    metrics: MetricsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    vae: VaeOption = None,
    offload: OffloadOption = False,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the experiments behind the papers' tables: ablation, correlation, curve, latency,
    layerwise, quality, recovery, seeds, settle, throughput, or all. Goes on if called again."""
    with one_sentence_errors():
        shares = _numbers("--rates", rates)
        found = _clips(clips)
        from stillframe.evaluation import BUNDLED_SCALE, PUBLISHED_SCALE, reproduce
        from stillframe.evaluation.experiments import find_experiment
        from stillframe.evaluation.runs import scaled

        names = _names(name)
        for one in names:
            if one != "all":
                find_experiment(one)
        options = LoadOptions(model, device, dtype, threads, vae, (), None, offload, height, width)
        with _planned(options, found, out, metrics, quiet) as plan:
            scale = scaled(
                BUNDLED_SCALE if plan.bundled else PUBLISHED_SCALE,
                frames=frames,
                height=height,
                width=width,
                clips=most,
                prompts=tuple(prompts) if prompts else None,
                seeds=seeds,
                rates=tuple(shares) if shares else None,
            )
            done = reproduce(plan, names, scale)
        if not quiet:
            for finding in done:
                say(f"{finding.name}: {finding.headline}")
            say(f"{out / 'report.html'}")


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise ValueError(f"{option} takes numbers such as .1,.32, got {text!r}") from error


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--seeds takes whole numbers such as 0,1, got {text!r}") from error


def _clips(places: Sequence[str]) -> tuple[Clip, ...]:
    from stillframe.evaluation.sources import find_clips

    return find_clips(places)


def _usual_prompts(plan: Plan) -> tuple[str, ...]:
    from stillframe.evaluation import BUNDLED_SCALE, PUBLISHED_SCALE

    return (BUNDLED_SCALE if plan.bundled else PUBLISHED_SCALE).prompts


@contextmanager
def _planned(
    options: LoadOptions, clips: tuple[Clip, ...], out: Path, metrics: str | None, quiet: bool
) -> Iterator[Plan]:
    """What a run works with: the model loaded, progress shown, Ctrl-C a wish."""
    from stillframe.evaluation import Plan
    from stillframe.evaluation.matrix import Watch, pick_metrics

    names = _names(metrics) or None
    pick_metrics(names)
    pipe = load(options)
    with Interruption() as interrupted, _progress(quiet) as tell:
        watch = Watch(tell, interrupted)
        try:
            yield Plan(pipe, options.model, clips, out, _command(), names, watch)
        except KeyboardInterrupt as error:
            warn(f"interrupted: what is done is in {out}, and the same command goes on from there")
            raise typer.Exit(interrupted.code) from error


def _command() -> str:
    """What was typed, for reports."""
    return shlex.join(["stillframe", *sys.argv[1:]])


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error: what is done, how many of how many, time left."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        tasks: dict[str, object] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(what), total=total)
            task = tasks[what]
            bar.update(task, completed=done, total=total)  # type: ignore[arg-type]

        yield tell
