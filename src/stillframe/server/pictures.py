"""Pictures of the network as pixels, and back; sizes are read before anything is decoded."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stillframe.server.limits import Limits
from stillframe.server.protocol import TOO_LARGE, UNREADABLE, ProtocolError

__all__ = ["check_size", "decode_picture", "encode_picture", "picture_size"]

Pixels = NDArray[np.uint8]

_SCANS = 64
"""Scans a JPEG may have. Each costs a pass over the picture, and a few bytes in the file."""

# start-of-frame markers: C0 to CF but for tables (C4), extensions (C8) and arithmetic coding (CC)
_STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that the header of a JPEG or still WebP picture tells.

    Raises:
        ProtocolError: it is neither, or damaged.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (struct.error, IndexError) as error:
        raise ProtocolError("a picture ends within its header", UNREADABLE) from error
    raise ProtocolError("a picture is JPEG or WebP, and this is neither", UNREADABLE)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The size in the frame header, before the first scan."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ProtocolError("a JPEG picture is damaged: a marker is missing", UNREADABLE)
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        if marker in _STARTS:
            height, width = struct.unpack_from(">2H", data, at + 4)
            return width, height
        if marker in (0xD9, 0xDA):
            raise ProtocolError("a JPEG picture is damaged: it has no size", UNREADABLE)
        (length,) = struct.unpack_from(">H", data, at + 1)
        at += 1 + max(length, 2)


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 2:
            raise ProtocolError("a WebP picture moves, and frames come one by one", UNREADABLE)
        return _three(data, 24) + 1, _three(data, 27) + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<2H", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ProtocolError("a WebP picture is damaged: it begins with no picture", UNREADABLE)


def _three(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse a picture that is too large.

    Raises:
        ProtocolError: it has more pixels, or longer sides, than it may have.
    """
    if width * height > limits.picture_pixels or max(width, height) > limits.picture_side:
        raise ProtocolError(
            f"a picture may have {limits.picture_pixels} pixels and sides of "
            f"{limits.picture_side}, this one is {width}x{height}",
            TOO_LARGE,
        )


def decode_picture(data: bytes, limits: Limits) -> Pixels:
    """Pixels of a JPEG or WebP picture, uint8 (H, W, 3), turned as its EXIF orientation says.

    Raises:
        ProtocolError: it is neither, damaged, cut off, or larger than it may be.
    """
    size = picture_size(data)
    check_size(*size, limits)
    if data[:1] == b"\xff" and data.count(b"\xff\xda") > _SCANS:
        raise ProtocolError(f"a JPEG picture may have {_SCANS} scans", TOO_LARGE)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as picture:
            other = picture.size
            if other == size:
                _turn(picture)
                return np.asarray(picture.convert("RGB"))
    except Exception as error:  # damaged pictures fail in every way there is
        # why is in words of the library, which names its objects
        told = f"a picture of {size[0]}x{size[1]} and {len(data)} bytes cannot be decoded"
        raise ProtocolError(told, UNREADABLE) from error
    raise ProtocolError(
        f"a picture is damaged: it has two sizes, {size[0]}x{size[1]} and {other[0]}x{other[1]}",
        UNREADABLE,
    )


def _turn(picture: Image.Image) -> None:
    """Turn a picture as it is to be seen; one whose EXIF data cannot be read stays as it lies."""
    picture.load()  # what is damaged in the picture itself is the caller's to say
    with contextlib.suppress(Exception):  # EXIF data is damaged in every way there is
        ImageOps.exif_transpose(picture, in_place=True)


def encode_picture(pixels: Pixels, quality: int) -> bytes:
    """A JPEG picture of uint8 (H, W, 3); quality is 1 to 100."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    return data.getvalue()
