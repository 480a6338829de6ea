"""Small files that are complete or not there, whatever happens while they are written.

Knows neither formats nor which names are allowed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from stillframe.errors import OutputError

__all__ = ["check_name", "name_beside", "write_whole"]

# bytes: what file systems allow, all of the usual ones alike
_LONGEST_NAME = 255


def name_beside(name: str, mark: str) -> str:
    """A name for something that is to become the file `name`: marked before its extension.

    A long one is shortened to what file systems allow, and keeps its extension.
    """
    stem, suffix = os.path.splitext(name)
    room = _LONGEST_NAME - len(os.fsencode(mark + suffix))
    # whole characters only
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + mark + suffix


def check_name(path: Path) -> None:
    """Refuse a name that no usual file system takes; touches nothing.

    Raises:
        OutputError: it is too long, or has a NUL in it.
    """
    length = len(os.fsencode(path.name))
    if length > _LONGEST_NAME or "\0" in path.name:
        what = f"has {length} bytes, and {_LONGEST_NAME} are the most" if length else "is empty"
        what = "has a NUL in it" if "\0" in path.name else what
        raise OutputError(f"{path} cannot be written: its name {what}")


def write_whole(path: str | PathLike[str], parts: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there; links are followed.

    Raises:
        OutputError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(name_beside(f"{target.name}.part", f".{os.getpid()}"))
    try:
        with open(part, "xb") as file:
            file.writelines(parts)
        os.replace(part, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OutputError(f"{path} could not be written: {error.strerror}") from error
