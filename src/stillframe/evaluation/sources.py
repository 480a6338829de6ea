"""Where clips come from: video files, folders of them, folders of pictures, DAVIS 2017 as it is
distributed (``JPEGImages/480p/NAME/*.jpg``, ``ImageSets/2017/val.txt``).

Frames are read one after another. What they are scaled to, and how many are wanted, others know.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stillframe.errors import InputError
from stillframe.video import VideoReader
from stillframe.video.picture import ToRgb

__all__ = ["Clip", "find_clips", "spread"]

Pixels = NDArray[np.uint8]

_VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
_PICTURES = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
_DAVIS_PICTURES = Path("JPEGImages", "480p")
_DAVIS_NAMES = Path("ImageSets", "2017", "val.txt")
_DAVIS_FPS = 24.0  # which pictures do not say


@dataclass(frozen=True)
class Clip:
    """A clip by name.

    Attributes:
        name: what reports call it; differs from every other clip's of a run.
        path: a video file, or a folder of pictures whose names are in order.
    """

    name: str
    path: Path

    @property
    def fps(self) -> float:
        """Frames a second; 24, DAVIS' own, for pictures.

        Raises:
            InputError: the file cannot be read.
        """
        if self.path.is_dir():
            return _DAVIS_FPS
        with VideoReader(self.path) as reader:
            return reader.fps

    def frames(self) -> Iterator[Pixels]:
        """The frames, uint8 (height, width, 3) RGB, upright, one after another.

        Raises:
            InputError: the clip cannot be read, or its pictures differ in size.
        """
        if self.path.is_dir():
            yield from _pictures(self.path)
            return
        with VideoReader(self.path) as reader:
            for frame in reader:
                yield frame.pixels


def _pictures(folder: Path) -> Iterator[Pixels]:
    to_rgb, size = ToRgb(), None
    for path in _picture_files(folder):
        picture = _decoded(path)
        size = size or (picture.width, picture.height)
        if (picture.width, picture.height) != size:
            raise InputError(
                f"{path} is {picture.width}x{picture.height} and the first picture of its folder "
                f"{size[0]}x{size[1]}"
            )
        yield to_rgb(picture, *size)


def _decoded(path: Path) -> av.VideoFrame:
    """One picture; by its codec alone, since FFmpeg takes some names of files for patterns."""
    codec: Any = av.CodecContext.create(_PICTURES[path.suffix.lower()], "r")
    try:
        found = codec.decode(av.Packet(path.read_bytes())) + codec.decode(None)
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"{path} has no picture")
    picture: av.VideoFrame = found[0]
    return picture


def _picture_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)


def find_clips(places: Sequence[str | PathLike[str]]) -> tuple[Clip, ...]:
    """The clips of files and folders, in the order given, those of a folder by name.

    Args:
        places: video files; folders of videos; folders of JPEG or PNG pictures; DAVIS 2017's.

    Raises:
        InputError: there is nothing there, or two clips have one name.
    """
    clips: list[Clip] = []
    for place in map(Path, places):
        found = _in_folder(place) if os.path.isdir(place) else [Clip(place.stem, place)]
        if not os.path.exists(place):
            raise InputError(f"{place} does not exist")
        if not found:
            raise InputError(f"{place} has neither videos nor pictures in it")
        clips += found
    counts = Counter(clip.name for clip in clips)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"{counts[twice[0]]} clips are called {twice[0]}; rename all but one")
    return tuple(clips)


def _in_folder(folder: Path) -> list[Clip]:
    if (folder / _DAVIS_PICTURES).is_dir():
        return _davis(folder)
    if _picture_files(folder):
        return [Clip(folder.resolve().name, folder)]
    return [
        Clip(path.stem, path) for path in sorted(folder.iterdir()) if path.suffix.lower() in _VIDEOS
    ]


def _davis(folder: Path) -> list[Clip]:
    """The validation clips, or all where the list of them is missing."""
    pictures, listing = folder / _DAVIS_PICTURES, folder / _DAVIS_NAMES
    if listing.is_file():
        names = listing.read_text(encoding="utf-8").split()
    else:
        names = sorted(path.name for path in pictures.iterdir() if path.is_dir())
    missing = [name for name in names if not (pictures / name).is_dir()]
    if missing:
        raise InputError(f"{listing} names {missing[0]}, which is not in {pictures}")
    return [Clip(name, pictures / name) for name in names]


def spread(clips: Sequence[Clip], most: int | None) -> tuple[Clip, ...]:
    """At most so many clips, spread evenly over all of them; None means all.

    Raises:
        ValueError: if ``most`` is not positive.
    """
    if most is None or most >= len(clips):
        return tuple(clips)
    if most < 1:
        raise ValueError(f"at least 1 clip is needed, got {most}")
    places = np.linspace(0, len(clips) - 1, most).round().astype(int)
    return tuple(clips[i] for i in dict.fromkeys(places.tolist()))
