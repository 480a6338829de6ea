"""A study's folder: one folder a method, the same names in each, and what must agree.

    DIR/pruned/*.mp4, DIR/dense/*.mp4, ...   the methods, two or more, by any names
    DIR/source/*                             what they were made from, if it is to be shown
    DIR/votes.jsonl                          what people said

Reads names and headers; decodes one picture a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stillframe.errors import InputError
from stillframe.video import VideoReader
from stillframe.video.containers import VIDEO_SUFFIXES
from stillframe.video.damage import Damage
from stillframe.video.demuxing import Demuxer
from stillframe.video.places import Source

__all__ = ["SOURCE", "VOTES", "Clip", "Facts", "Layout", "facts", "read_layout"]

#: The folder of what the methods were given.
SOURCE = "source"
#: The file of the votes.
VOTES = "votes.jsonl"

_NAMED = 5
_SAME_RATE = 5e-4  # 30 and 29.97 are two rates, a container's rounding makes none


class Facts(NamedTuple):
    """What a video file is.

    Attributes:
        width, height: of the upright pictures, in pixels.
        frames: how many there are.
        fps: average frames a second.
        kind: codec, pixel format and container: "h264 (yuv420p) in .mp4".
        plays: whether browsers play it.
    """

    width: int
    height: int
    frames: int
    fps: float
    kind: str
    plays: bool

    def agrees(self, other: Facts) -> bool:
        """Whether two can be shown side by side, in step."""
        return self[:3] == other[:3] and math.isclose(self.fps, other.fps, rel_tol=_SAME_RATE)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames at {self.fps:.6g} a second"


@dataclass(frozen=True)
class Clip:
    """One clip of a study.

    Attributes:
        name: of its files, without their extension.
        files: by method.
        facts: of each of them.
        source: what they were made from, None if it is not shown.
    """

    name: str
    files: Mapping[str, Path]
    facts: Mapping[str, Facts]
    source: Path | None = None

    @property
    def seconds(self) -> float:
        """How long it is."""
        first = next(iter(self.facts.values()))
        return first.frames / first.fps


@dataclass(frozen=True)
class Layout:
    """What there is to compare.

    Attributes:
        folder: of the study.
        methods: names, sorted; every two of them are compared.
        clips: sorted by name.
    """

    folder: Path
    methods: tuple[str, ...]
    clips: tuple[Clip, ...]


def read_layout(folder: Path) -> Layout:
    """Find methods and clips, and check that what is compared agrees.

    Raises:
        InputError: there are fewer than two methods, names are missing, a file is not a video, or
            sizes, frames or rates of a clip differ.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    folders = [each for each in sorted(folder.iterdir()) if each.is_dir() and each.name[0] != "."]
    videos = {each.name: found for each in folders if (found := _videos(each))}
    sources = videos.pop(SOURCE, {})
    if len(videos) < 2:
        raise InputError(
            f"{folder} has {len(videos)} folders of videos and a study compares 2 or more, "
            f"as {folder}/pruned and {folder}/dense with the same file names"
        )
    names = sorted(set().union(*videos.values()))
    for method in [*videos, *([SOURCE] if sources else [])]:
        _check_names(folder / method, sources if method == SOURCE else videos[method], names)
    clips = [
        _clip(name, {method: videos[method][name] for method in videos}, sources.get(name))
        for name in names
    ]
    return Layout(folder, tuple(sorted(videos)), tuple(clips))


def _videos(folder: Path) -> dict[str, Path]:
    """Videos of a folder by name without extension."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "." and path.is_file():
            if path.stem in found:
                raise InputError(
                    f"{folder} has 2 videos named {path.stem}: {found[path.stem].name} and "
                    f"{path.name}"
                )
            found[path.stem] = path
    return found


def _check_names(folder: Path, videos: Mapping[str, Path], names: list[str]) -> None:
    missing = [name for name in names if name not in videos]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"{folder} has {len(videos)} of {len(names)} videos: "
            f"{', '.join(missing[:_NAMED])}{more} is missing"
        )


def _clip(name: str, files: Mapping[str, Path], source: Path | None) -> Clip:
    found = {method: facts(path) for method, path in files.items()}
    (first, expected), *others = found.items()
    for method, each in others:
        if not each.agrees(expected):
            raise InputError(
                f"{name} cannot be compared: it is {expected} in {first}, and {each} in {method}"
            )
    return Clip(name, files, found, source)


def facts(path: Path) -> Facts:
    """What a file is; its packets are counted, because headers guess.

    Raises:
        InputError: it is not a video.
    """
    with VideoReader(path) as reader:
        width, height, fps = reader.width, reader.height, reader.fps
    demuxer = Demuxer(Source.of(path), Damage())
    try:
        codec = demuxer.video.codec_context
        name, pixels = codec.name, codec.pix_fmt or "?"
        frames = sum(1 for _ in demuxer.packets())
    finally:
        demuxer.close()
    suffix = path.suffix.lower()
    plays = (name, suffix) in _PLAYED and pixels in _PLAYED_PIXELS
    return Facts(width, height, frames, fps, f"{name} ({pixels}) in {suffix}", plays)


# what Chromium, Firefox and Safari have in common
_PLAYED = {
    ("h264", ".mp4"), ("h264", ".m4v"), ("av1", ".mp4"), ("libdav1d", ".mp4"),
    ("vp9", ".webm"), ("libvpx-vp9", ".webm"), ("av1", ".webm"), ("libdav1d", ".webm"),
}  # fmt: skip
_PLAYED_PIXELS = {"yuv420p", "yuvj420p"}
