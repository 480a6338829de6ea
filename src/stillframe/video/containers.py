"""Containers: which of them an extension or the name of a stream means, and what each can hold.

A table; opens nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

__all__ = ["CONTAINERS", "SEQUENCES", "STREAMS", "VIDEO_SUFFIXES", "Container"]

_FINEST_TICK = Fraction(1, 1_000_000)
_SLOW_FPS = 10
_NOTHING: frozenset[str] = frozenset()
# Keys, as FFmpeg calls them, that are told when they are lost.
_TAGS = frozenset(
    {"title", "artist", "album", "date", "creation_time", "genre", "comment", "copyright"}
    | {"description", "location"}
)


class Container(NamedTuple):
    """What an extension or the name of a stream stands for.

    Attributes:
        format: FFmpeg's name of the muxer.
        codec: the encoder used unless another is asked for.
        tick: the only time base that it can hold; None if it holds any.
        constant_rate: times are multiples of one frame's duration.
        stream: its name as a stream, which is sent at once and never gone back to; None: a file.
        keeps_gaps: a frame that comes late stays late; otherwise it follows the one before it.
        sounds: codecs of sound that it holds; None: whatever its muxer accepts.
        subtitles: the same for subtitles.
        encoder: of sound that it does not hold; None: that is left out.
        has_late_sound: whether sound can begin later than the file.
        most_sounds: how many tracks of sound it holds.
        tags: of `_TAGS`, those that it holds.
        has_chapters: whether it holds chapters.
        least_ticks: how long a picture is shown at least; others are left out.
        ending: how the end of the last picture is written. "duration": as its duration. "sum": as
            the sum of all durations, which follow the order of decoding. "repeat": not at all, so
            that a picture that lasts is shown again.
    """

    format: str
    codec: str
    tick: Fraction | None = None
    constant_rate: bool = False
    stream: str | None = None
    keeps_gaps: bool = True
    sounds: frozenset[str] | None = None
    subtitles: frozenset[str] | None = None
    encoder: str | None = None
    has_late_sound: bool = True
    most_sounds: int = 1000
    tags: frozenset[str] = _TAGS
    has_chapters: bool = True
    least_ticks: int = 1
    ending: Literal["duration", "sum", "repeat"] = "duration"

    def grid(self, time_base: Fraction, rate: Fraction) -> Fraction:
        """The time base to write in: `time_base` itself wherever the container can hold it."""
        if self.constant_rate and self.keeps_gaps and rate < _SLOW_FPS:
            # of pictures that come now and then, an average rate says little about their times
            return 1 / (rate * math.ceil(2 * _SLOW_FPS / rate))
        if self.constant_rate:
            return 1 / rate
        if self.tick is not None:
            return self.tick
        # Finer ticks overflow the 32-bit durations of MP4 after a few seconds without a frame.
        return max(time_base, _FINEST_TICK)

    def lost_tags(self, tags: Mapping[str, str]) -> list[str]:
        """Keys of tags worth telling that it cannot hold."""
        return sorted({key.lower() for key in tags} & _TAGS - self.tags)


#: What is taken for a video in a folder; a file that is named is read whatever it is called.
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"}
)

_MILLISECOND = Fraction(1, 1000)
_MP4 = Container("mp4", "libx264", encoder="aac", ending="sum")
CONTAINERS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": _MP4._replace(format="mov"),
    ".mkv": Container("matroska", "libx264", tick=_MILLISECOND, encoder="libopus"),
    ".webm": Container("webm", "libvpx-vp9", tick=_MILLISECOND, encoder="libopus"),
    ".avi": Container(
        "avi",
        "mpeg4",
        constant_rate=True,
        subtitles=_NOTHING,
        encoder="libmp3lame",
        has_late_sound=False,
        tags=_TAGS - {"description", "location", "creation_time"},
        has_chapters=False,
    ),
    ".gif": Container(
        "gif",
        "gif",
        tick=Fraction(1, 100),
        # browsers show for 100 ms what is to be shown for less than 20
        least_ticks=2,
        sounds=_NOTHING,
        subtitles=_NOTHING,
        tags=_NOTHING,
        has_chapters=False,
    ),
}
# Numbered pictures, one a file.
SEQUENCES = {
    ".png": Container(
        "image2",
        "png",
        constant_rate=True,
        keeps_gaps=False,
        sounds=_NOTHING,
        subtitles=_NOTHING,
        tags=_NOTHING,
        has_chapters=False,
    )
}
# FFmpeg puts anything into a transport stream, and players find only these in it.
_MPEGTS_SOUNDS = frozenset({"aac", "ac3", "dts", "eac3", "mp2", "mp3", "opus"})
_MPEGTS_SUBTITLES = frozenset({"dvb_subtitle", "dvb_teletext"})
STREAMS = {
    "y4m": Container(
        "yuv4mpegpipe",
        "rawvideo",
        constant_rate=True,
        stream="y4m",
        keeps_gaps=False,
        sounds=_NOTHING,
        subtitles=_NOTHING,
        tags=_NOTHING,
        has_chapters=False,
    ),
    "mpegts": Container(
        "mpegts",
        "libx264",
        Fraction(1, 90_000),
        stream="mpegts",
        sounds=_MPEGTS_SOUNDS,
        subtitles=_MPEGTS_SUBTITLES,
        encoder="aac",
        tags=_NOTHING,
        has_chapters=False,
        ending="repeat",
    ),
    "matroska": Container(
        "matroska", "libx264", _MILLISECOND, stream="matroska", encoder="libopus"
    ),
    "flv": Container(
        "flv",
        "libx264",
        _MILLISECOND,
        stream="flv",
        subtitles=_NOTHING,
        encoder="aac",
        most_sounds=1,
        has_chapters=False,
        ending="repeat",
    ),
}
