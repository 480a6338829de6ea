"""What ``eval`` and ``reproduce`` have in common: their options, and a run with its progress."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stillframe.cli.interruption import Interruption
from stillframe.cli.options import FRAMES, HARDWARE, MODEL, OFFLOAD, QUIET, SIZE, VAE, load, part
from stillframe.cli.screen import warn
from stillframe.errors import StillframeError
from stillframe.options import Option
from stillframe.untrusted.printable import printable

if TYPE_CHECKING:
    from stillframe.evaluation import Plan
    from stillframe.evaluation.sources import Clip

__all__ = ["MEASURING", "RATES", "check_packages", "names", "planned"]

_NEEDED = ("jinja2", "matplotlib", "scipy")

RATES = {
    "rates": Option(
        "floats",
        "Leave out these shares of the tokens: .1,.2.",
        metavar="SHARES",
        least=0,
        below=1,
    )
}
#: Options of both commands.
MEASURING = {
    "out": Option("path", "Write into this folder.", metavar="FOLDER", required=True, short="o"),
    **MODEL,
    "frames": Option(
        "int", "Take at most so many frames of a clip.", metavar="N", least=1, most=FRAMES
    ),
    "prompts": Option(
        "str", "Edit with this prompt; may be given several times.", metavar="TEXT", repeats=True
    ),
    **RATES,
    "metrics": Option(
        "str", "Measure these, with commas; all that can be had by default.", metavar="NAMES"
    ),
    "height": SIZE["height"],
    **QUIET,
    "width": SIZE["width"],
    **HARDWARE,
    **VAE,
    **OFFLOAD,
}


def check_packages() -> None:
    """Refuse if what reports are made with is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StillframeError(
            f"a report needs {', '.join(missing)}: install them with pip install 'stillframe[eval]'"
        )


def names(text: str | None) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@contextmanager
def planned(given: Mapping[str, Any], clips: tuple[Clip, ...]) -> Iterator[Plan]:
    """What a run works with: the model loaded, progress shown, Ctrl-C ends it after a cell."""
    from stillframe.evaluation import Plan
    from stillframe.evaluation.matrix import Progress, pick_metrics

    out: Path = given["out"]
    metrics = names(given["metrics"]) or None
    pick_metrics(metrics)
    pipe = load(part(given, (*MODEL, *SIZE, *HARDWARE, *VAE, *OFFLOAD)))
    with Interruption() as interrupted, _progress(given["quiet"]) as tell:
        progress = Progress(tell, interrupted)
        try:
            yield Plan(pipe, given["model"], clips, out, _command(), metrics, progress)
        except KeyboardInterrupt as error:
            warn(f"interrupted: what is done is in {out}, and the same command goes on from there")
            raise typer.Exit(interrupted.code) from error


def _command() -> str:
    """What was typed, for reports."""
    return shlex.join(["stillframe", *sys.argv[1:]])


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error: what is done, how many of how many, time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

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
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(what), total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell
