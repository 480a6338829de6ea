"""Files as browsers play them: those that are none are written anew, nearly without loss.

Both sides of a pair are treated alike: if one of them is written anew, or they are of two kinds, so
are all of its clip. Else people would compare encoders, or tell methods by the kind of file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from stillframe.study.layout import Clip, Layout, facts
from stillframe.video import VideoReader, VideoWriter

__all__ = ["CACHE", "make_playable", "unplayable"]

#: The folder below the study's that holds what was written.
CACHE = ".playable"

# 18 is where people see no loss; what is compared gets more
_CRF = 12


def unplayable(layout: Layout) -> list[Path]:
    """Files that are shown as a copy, each once."""
    return [path for clip in layout.clips for path in _of_clip(clip)]


def _of_clip(clip: Clip) -> list[Path]:
    found = []
    kinds = {each.kind for each in clip.facts.values()}
    if len(kinds) > 1 or not all(each.plays for each in clip.facts.values()):
        found += list(clip.files.values())
    if clip.source is not None and not facts(clip.source).plays:
        found.append(clip.source)
    return found


def make_playable(
    layout: Layout, files: list[Path], progress: Callable[[Path], None] = lambda path: None
) -> Layout:
    """The layout with copies in place of files that browsers do not play.

    Copies that are there from before are used again; those of files that changed go.

    Args:
        files: what `unplayable` found.
        progress: told each file before it is written.

    Raises:
        InputError: a file cannot be read.
        OutputError: a copy cannot be written.
    """
    cache = layout.folder / CACHE
    copies = {path: cache / _name(layout.folder, path) for path in files}
    if copies:
        cache.mkdir(exist_ok=True)
    for path, copy in copies.items():
        if not copy.is_file():
            progress(path)
            _write(path, copy)
    for old in cache.glob("*.mp4") if cache.is_dir() else ():
        if old not in copies.values():
            old.unlink()
    return replace(layout, clips=tuple(_copied(clip, copies) for clip in layout.clips))


def _copied(clip: Clip, copies: Mapping[Path, Path]) -> Clip:
    files = {method: copies.get(path, path) for method, path in clip.files.items()}
    source = None if clip.source is None else copies.get(clip.source, clip.source)
    return replace(clip, files=files, source=source)


def _name(folder: Path, path: Path) -> str:
    """The same as long as the file is, and another one when it was replaced."""
    state = path.stat()
    told = f"{path.relative_to(folder)}/{state.st_size}/{state.st_mtime_ns}/{_CRF}"
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:20] + ".mp4"


def _write(path: Path, copy: Path) -> None:
    with (
        VideoReader(path) as reader,
        VideoWriter(
            copy,
            reader.width,
            reader.height,
            reader.time_base,
            reader.fps,
            crf=_CRF,
            sample_aspect_ratio=reader.sample_aspect_ratio,
        ) as writer,
    ):
        for frame in reader:
            writer.write(frame.pixels, frame.pts, frame.duration)
