"""Files that are there already: nobody loses one without having been asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from os import PathLike

import typer

from stillframe.errors import OutputError

__all__ = ["ask_to_replace"]


def ask_to_replace(files: Iterable[str | PathLike[str] | None], yes: bool) -> None:
    """Ask whether files may be replaced; without a terminal nobody can be asked.

    Args:
        files: to be written; None where one is not wanted.
        yes: they may.

    Raises:
        OutputError: they may not.
    """
    there = [os.fsdecode(file) for file in files if file is not None and _is_there(file)]
    if yes or not there:
        return
    names = " and ".join(there)
    are = "is there already" if len(there) == 1 else "are there already"
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        if typer.confirm(f"{names} {are}. Replace?", err=True):
            return
        raise OutputError(f"{names} {'was' if len(there) == 1 else 'were'} not replaced")
    raise OutputError(f"{names} {are}: -y replaces {'it' if len(there) == 1 else 'them'}")


def _is_there(file: str | PathLike[str]) -> bool:
    """Whether something would be lost by writing; a device loses nothing."""
    return os.path.isfile(file)
