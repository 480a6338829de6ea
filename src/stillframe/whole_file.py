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

__all__ = ["write_whole"]


def write_whole(path: str | PathLike[str], parts: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there; links are followed.

    Raises:
        OutputError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            file.writelines(parts)
        os.replace(part, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OutputError(f"{path} could not be written: {error.strerror}") from error
