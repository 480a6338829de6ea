"""A video file as it is sent: with nothing about it that tells the sides of a pair apart.

No name, no date, and as many bytes as the other side has: what is filled up with is, in MP4, a box
that is free (ISO/IEC 14496-12, 8.1.2) and in WebM an element that is void (RFC 8794, 11.3.2), which
players skip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["media_type", "padded", "padded_size"]

_PIECE = 1 << 20
_LEAST = 16  # bytes of a box that is free, or of an element that is void, at least


def media_type(path: Path) -> str:
    """What browsers are told that it is."""
    return "video/webm" if path.suffix.lower() == ".webm" else "video/mp4"


def padded_size(path: Path, largest: int) -> int:
    """Bytes that `padded` gives."""
    return max(path.stat().st_size, largest) + _LEAST


def padded(path: Path, size: int) -> Iterator[bytes]:
    """A file in pieces, filled up to so many bytes, 16 or more than it has."""
    with path.open("rb") as file:
        sent = 0
        while piece := file.read(_PIECE):
            sent += len(piece)
            yield piece
    left = size - sent
    if path.suffix.lower() == ".webm":
        head = b"\xec\x01" + struct.pack(">Q", left - 9)[1:]
    elif left < 2**32:
        head = struct.pack(">I4s", left, b"free")
    else:
        head = struct.pack(">I4sQ", 1, b"free", left)
    left -= len(head)
    yield head
    while left:
        yield bytes(min(left, _PIECE))
        left -= min(left, _PIECE)
