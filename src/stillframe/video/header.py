"""What the header of a video file says, without decoding a picture."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

from stillframe.errors import InputError
from stillframe.video.damage import Damage
from stillframe.video.demuxing import Demuxer
from stillframe.video.places import Source
from stillframe.video.timing import LEAST_FPS

__all__ = ["Header", "read_header"]

_FPS_IF_UNKNOWN = 25.0


class Header(NamedTuple):
    """Of a video file.

    Attributes:
        width, height: of stored pictures, in pixels; 0 if it does not say.
        frames: how many it has, as far as it says or implies; 0 if it does not.
        fps: average frames a second.
    """

    width: int
    height: int
    frames: int
    fps: float


def read_header(path: str | PathLike[str]) -> Header:
    """What a file's header says.

    Raises:
        InputError: it is missing, or not a video.
    """
    source = Source.of(path)
    if source.kind != "file":
        raise InputError(f"{source.name} is not a video file")
    demuxer = Demuxer(source, Damage())
    try:
        stream: Any = demuxer.video
        codec = stream.codec_context
        fps = float(stream.average_rate or stream.guessed_rate or _FPS_IF_UNKNOWN)
        fps = fps if fps >= LEAST_FPS else _FPS_IF_UNKNOWN
        frames = stream.frames or round(float(demuxer.duration) * fps)
        return Header(codec.width, codec.height, max(0, frames), fps)
    finally:
        demuxer.close()
