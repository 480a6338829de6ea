"""When the pictures of a file end, which the times at which they begin do not say.

Knows where containers write it down, and how to tell a file that was cut short from a whole one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

__all__ = ["is_whole_avi", "is_whole_matroska", "stated_end"]

_MICROSECOND = Fraction(1, 1_000_000)
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_EBML, _SEGMENT = bytes.fromhex("1A45DFA3"), bytes.fromhex("18538067")
_HEADER_BYTES = 4096


def stated_end(container: InputContainer, video: VideoStream) -> Fraction | None:
    """Seconds, on the file's own clock, at which the pictures end; None if nothing says so.

    MP4 and AVI have it per track. Matroska has it for the whole file, and for a track in a tag
    that most programs write.
    """
    if video.duration and video.time_base:
        return Fraction(((video.start_time or 0) + video.duration) * video.time_base)
    ends: list[Fraction] = []
    tag = _TIME.fullmatch(video.metadata.get("DURATION", "").strip())
    if tag is not None:
        hours, minutes, seconds = tag.groups()
        ends.append(int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds))
    if container.duration and len(container.streams) == 1:
        ends.append(((container.start_time or 0) + container.duration) * _MICROSECOND)
    return max(ends, default=None)


def is_whole_matroska(path: Path) -> bool:
    """Whether a Matroska file is as long as its segment says; not if it does not say.

    Source: RFC 8794, element IDs and variable-size integers; RFC 9559, the segment.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] != _EBML:
        return False
    at, size = _sized(head, 4)
    if size is None or head[at + size : at + size + 4] != _SEGMENT:
        return False
    at, size = _sized(head, at + size + 4)
    return size is not None and path.stat().st_size >= at + size


def is_whole_avi(path: Path) -> bool:
    """Whether an AVI file is as long as its first list says; not if it does not say.

    Source: Microsoft, "AVI RIFF File Reference".
    """
    with path.open("rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    return head[:4] == b"RIFF" and 0 < size <= path.stat().st_size - 8


def _sized(data: bytes, at: int) -> tuple[int, int | None]:
    """The variable-size integer at a position: the position after it, and the value if known."""
    if at >= len(data) or not data[at]:
        return at, None
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return at + length, None if value == (1 << 7 * length) - 1 else value
