"""What the command line shows: sentences, a progress bar, summaries and tables.

rich is imported by what shows something, so that help does not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from stillframe.cli.interruption import exit_code
from stillframe.errors import OutputClosedError, StillframeError
from stillframe.untrusted.printable import printable

if TYPE_CHECKING:
    from rich.text import Text

    from stillframe.jobs.edit import Progress as EditProgress
    from stillframe.jobs.report import Report, RunReport

__all__ = [
    "READER_GONE",
    "REFUSED",
    "complain",
    "counted_progress",
    "edit_progress",
    "names_table",
    "numbers_table",
    "one_sentence_errors",
    "say",
    "summary",
    "warn",
]

REFUSED = 2
# A line of JSON may be long; sentences and names are not.
_LONGEST_LINE = 100_000
#: What a shell reports of a program that ended because nobody reads its output any more.
READER_GONE = 141


def say(text: str, *, stderr: bool = False) -> None:
    """A line on standard output (or error), as it is: not wrapped, not marked up."""
    from rich.console import Console

    Console(soft_wrap=True, stderr=stderr).print(
        printable(text, _LONGEST_LINE), markup=False, highlight=False, emoji=False
    )


def warn(text: str) -> None:
    """A warning on standard error."""
    _to_stderr("Warning", "yellow", text)


def complain(text: str) -> None:
    """An error on standard error."""
    _to_stderr("Error", "bold red", text)


def _to_stderr(label: str, style: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{label}: ", style), printable(text))
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """What users cause: one sentence on standard error and exit code 2; for Ctrl-C, 130, and for
    SIGTERM, 143.

    A reader of the output that has gone is a warning, and exit code 141.
    """
    try:
        yield
    except OutputClosedError as error:
        warn(str(error))
        raise typer.Exit(READER_GONE) from error
    except (StillframeError, ValueError) as error:
        complain(str(error))
        raise typer.Exit(REFUSED) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain("out of memory; a smaller --height needs less")
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.strerror is None:
            raise
        complain(_of_the_system(error))
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as error:
        _to_stderr("Interrupted", "yellow", "nothing unfinished was kept")
        raise typer.Exit(exit_code(error)) from error


def _of_the_system(error: OSError) -> str:
    """What a file, a folder or the network refused, in a sentence."""
    reason = str(error.strerror).lower()
    name = error.filename
    return reason if name is None else f"{os.fsdecode(name)} cannot be used: {reason}"


def _is_out_of_memory(error: Exception) -> bool:
    """Also torch's own errors, which are known by name because torch is not imported here."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in str(error)
    )


@contextmanager
def edit_progress(
    quiet: bool = False, label: str = "editing"
) -> Iterator[Callable[[EditProgress], None]]:
    """A progress bar on standard error with frames, FPS, kept share and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[of]} frames"),
        TextColumn("{task.fields[fps]}"),
        TextColumn("{task.fields[kept]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(label, total=None, fps="", kept="", of="?")

        def show(progress: EditProgress) -> None:
            bar.update(
                task,
                completed=progress.frames_out,
                total=progress.frames_total,
                of="?" if progress.frames_total is None else progress.frames_total,
                fps=f"{progress.fps:.1f} FPS",
                kept=_shares(progress),
            )

        yield show


@contextmanager
def counted_progress(
    label: str, unit: str, quiet: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error that is told how many are done, and of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[of]} " + unit),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(label, total=None, of="?")

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, of="?" if total is None else total)

        yield show


def _shares(progress: EditProgress) -> str:
    if progress.kept_share is None:
        return ""
    moved = f", {progress.moved_share:.0%} moved" if progress.moved_share else ""
    return f"{progress.kept_share:.0%} kept{moved}"


def summary(report: Report) -> list[str]:
    """What was done, in a line or two."""
    if not report.frames_out:
        return [f"interrupted before the first block was done: {report.output} was not written"]
    seconds = report.seconds["total"]
    lines = [
        f"{report.output}: {report.frames_out} frames of {report.width}x{report.height} in "
        f"{seconds:.1f} s ({report.fps:.1f} FPS), {_of_the_patches(report)}"
    ]
    if report.interrupted:
        left = report.frames_in - report.frames_out
        lines.append(f"interrupted: {left} more frames had been read, which are not in the file")
    if report.staleness is not None:
        stale = report.staleness
        lines.append(
            f"patches that were reused differ from their source by {stale['p99']:.1f} grey levels "
            f"(99th percentile), at most {stale['max']:.1f}"
        )
    if report.full is not None:
        lines.append(_against_full(report, report.full))
    return lines


def _of_the_patches(report: Report) -> str:
    kept, moved = report.kept_share, report.moved_share
    told = f"{kept:.0%} of the patches recomputed"
    # what merges tokens moves none
    return f"{told}, {moved:.0%} moved, {1 - kept - moved:.0%} unchanged" if moved else told


def _against_full(report: Report, full: RunReport) -> str:
    psnr, flickers = report.psnr_vs_full_db, (report.flicker, full.flicker)
    parts = [
        f"without pruning: {full.seconds['total']:.1f} s ({full.fps:.1f} FPS)",
        f"speedup {_times(report.speedup_total)}, in denoising {_times(report.speedup_denoise)}",
    ]
    if psnr is not None:
        parts.append(f"PSNR between the two {psnr:.1f} dB")
    if report.worst_patch is not None and report.worst_patch_seed is not None:
        parts.append(
            f"worst patches {report.worst_patch['p99']:.1f} grey levels apart (99th percentile; "
            f"another seed {report.worst_patch_seed['p99']:.1f})"
        )
    if flickers[0] is not None and flickers[1] is not None:
        parts.append(
            f"static regions flicker by {flickers[0]:.2f} grey levels, without pruning by "
            f"{flickers[1]:.2f}, the source itself by {report.flicker_source:.2f}"
        )
    return "; ".join(parts)


def _times(factor: float | None) -> str:
    return "unknown" if factor is None else f"{factor:.2f}x"


def names_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column holds names."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(_text(name)) for name in columns), box=None, pad_edge=False)
    for name, *rest in rows:
        table.add_row(_text(name, "bold"), *map(_text, rest))
    Console().print(table)


def _text(cell: str, style: str = "") -> Text:
    """A cell as it is, no markup."""
    from rich.text import Text

    return Text(printable(cell), style=style)


def numbers_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, narrow: bool = False
) -> None:
    """Print a table, without lines if narrow; the first column holds names, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False)
    if narrow:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(_text(columns[0]), style="bold")
    for name in columns[1:]:
        table.add_column(_text(name), justify="right")
    for row in rows:
        table.add_row(*map(_text, row))
    Console().print(table)
