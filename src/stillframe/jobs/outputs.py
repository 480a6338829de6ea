"""The files a job will write, checked before any work is done."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from stillframe.errors import OutputError
from stillframe.video import Sink, Source, check_file, check_output

__all__ = ["check_outputs"]

StrPath = str | PathLike[str]


def check_outputs(
    source: StrPath | Source | None,
    target: StrPath | Sink,
    map_path: StrPath | None = None,
    *files: StrPath | None,
) -> None:
    """Refuse outputs that cannot be written. Touches nothing, neither pipes nor the network.

    Args:
        source: the video or stream that is read; None if there is none.
        target: the video or stream that is written.
        map_path: the video of what was recomputed, if wanted.
        files: what else is written, as a report; None where it is not wanted.

    Raises:
        OutputError: one of them cannot be written, or two of them are the same file.
    """
    if isinstance(source, Source):
        source = source.text if source.kind == "file" else None
    sink = Sink.of(target)
    read = source if source is not None and os.path.exists(source) else None
    taken: dict[Path, StrPath]
    taken = {} if source is None else {Path(os.path.realpath(source)): source}
    places: list[tuple[StrPath, Path]] = []
    if sink.kind == "file":
        places.append((sink.text, check_output(sink.text, source=read)))
    if map_path is not None:
        places.append((map_path, check_output(map_path, source=read)))
    places += [(file, check_file(file)) for file in files if file is not None]
    for path, real in places:
        if real in taken:
            raise OutputError(f"{path} is the same file as {taken[real]}; choose another name")
        taken[real] = path
