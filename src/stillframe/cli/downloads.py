"""Downloads as the command line shows them: how much first, then a bar.

What is wanted and where it is, `hub` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stillframe.cli.screen import numbers_table, say
from stillframe.untrusted.printable import printable

if TYPE_CHECKING:
    from stillframe.loading.hub import RemoteFile, Wanted

__all__ = ["fetch_shown"]


def fetch_shown(wanted: Sequence[Wanted]) -> tuple[str | None, list[Path]]:
    """Show what there is and what is missing, and download that with a bar on standard error.

    Returns:
        how much was missing, in words (None for nothing), and where all files are.

    Raises:
        ModelError: see ``hub.fetch``.
    """
    from stillframe.loading.hub import fetch, survey

    files = survey(wanted)
    missing = _show_survey(files)
    with _download_bar() as show:
        return missing, fetch(wanted, show, files)


def _show_survey(files: Sequence[RemoteFile]) -> str | None:
    """Print what there is and what is missing; returns how much that is, None for nothing."""
    from stillframe.loading.hub import size_text

    for repo in dict.fromkeys(file.repo for file in files):
        rows = [
            (file.name, size_text(file.size), "on disk" if file.present else "to download")
            for file in files
            if file.repo == repo
        ]
        numbers_table((repo, "size", ""), rows)
    missing = [file for file in files if not file.present]
    if not missing:
        return None
    text = size_text(sum(file.size or 0 for file in missing))
    everything = size_text(sum(file.size or 0 for file in files))
    say(f"{len(missing)} of {len(files)} files to download: {text} of {everything}")
    return text


@contextmanager
def _download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on standard error for one file after the other."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        tasks = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(printable(file), total=total)
            bar.update(tasks[file], completed=done, total=total)

        yield show
