"""One picture: between a codec's pixel format and upright 8-bit RGB, same colours both ways.

Knows YUV matrices and ranges, what to assume where a file does not say, and display matrices. Does
not know files or time. Of transfer curves and primaries, only those of HDR are converted (`tone`).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from stillframe.video.library import side_data
from stillframe.video.tone import ToneMap, hdr_curve

__all__ = ["FromRgb", "Orientation", "ToRgb", "tag_colours", "tell_mpeg4_colours"]

# libswscale: bilinear, accurate rounding, full chroma interpolation. Without the last two it takes
# table-driven short cuts that darken every round trip by more than one grey level.
_ACCURATE = 0x2 | 0x40000 | 0x2000
_ACCURATE_NAMES = "bilinear+accurate_rnd+full_chroma_int"
_UNKNOWN_MATRICES = frozenset({2, 3})
_BT709_TAG = 1
_BT601_TAG = 6
_LIMITED_RANGE_TAG = 1


def _is_bt709(width: int, height: int) -> bool:
    """Whether players take a picture that does not name its YUV matrix for BT.709, not BT.601."""
    return width >= 1280 or height > 576


class ToRgb:
    """Converts decoded pictures, keeping libswscale's tables from one to the next.

    Args:
        background: grey level that shows through where a picture is transparent.

    Attributes:
        curve: of HDR if a picture had one, PQ or HLG; else None.
    """

    def __init__(self, background: int = 0) -> None:
        self._background = background
        self.curve: str | None = None
        self._reformatter = VideoReformatter()
        self._tone: ToneMap | None = None

    def __call__(self, frame: av.VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
        """Any picture as uint8 (height, width, 3) RGB, scaled if it has another size.

        More than 8 bits are rounded; HDR becomes SDR; alpha, which is taken not to be multiplied
        into the colours, lets the background through.
        """
        curve = hdr_curve(frame)
        if curve is not None:
            self.curve = curve
            if self._tone is None or not self._tone.fits(frame):
                self._tone = ToneMap(frame)
            frame = self._tone(frame)
        matrix = None
        if frame.colorspace in _UNKNOWN_MATRICES:
            is_bt709 = _is_bt709(frame.width, frame.height)
            matrix = Colorspace.ITU709 if is_bt709 else Colorspace.ITU601
        has_alpha = any(part.is_alpha for part in frame.format.components)
        has_alpha = has_alpha or frame.format.name == "pal8"
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgba" if has_alpha else "rgb24",
            src_colorspace=matrix,
            interpolation=_ACCURATE,
        )
        pixels = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        return self._composite(pixels) if has_alpha else pixels

    def _composite(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGBA over the background: RGB."""
        alpha = pixels[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        weight = alpha.astype(np.uint16)
        mixed = pixels[..., :3] * weight + self._background * (255 - weight) + 127
        return (mixed // 255).astype(np.uint8)


class FromRgb:
    """Converts rgb24 pictures of one size to an encoder's pixel format; times pass through.

    YUV has limited range, the matrix that `tag_colours` declares, and chroma level with the left
    pixel, where decoders expect it and plain libswscale does not put it. "pal8" pictures
    get 256 colours each, dithered.

    Args:
        width, height: in pixels.
        time_base: of the pictures' times.
        pixel_format: FFmpeg's name.
    """

    def __init__(self, width: int, height: int, time_base: Fraction, pixel_format: str) -> None:
        self._graph = Graph()
        rgb: Any = av.VideoFormat("rgb24")
        source = self._graph.add_buffer(width=width, height=height, format=rgb, time_base=time_base)
        if pixel_format == "pal8":
            last = self._add_palette(source)
        else:
            last = self._graph.add("format", pixel_format)
            matrix = "bt709" if _is_bt709(width, height) else "bt601"
            is_yuv = pixel_format.startswith("yuv")
            yuv = f":out_color_matrix={matrix}:out_range=tv:out_h_chr_pos=0" if is_yuv else ""
            scale = self._graph.add("scale", f"flags={_ACCURATE_NAMES}{yuv}")
            source.link_to(scale)
            scale.link_to(last)
        last.link_to(self._graph.add("buffersink"))
        self._graph.configure()

    def _add_palette(self, source: FilterContext) -> FilterContext:
        split = self._graph.add("split")
        palette = self._graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        paint = self._graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
        source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(paint, 1, 0)
        palette.link_to(paint, 0, 1)
        return paint

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        self._graph.push(frame)
        converted: Any = self._graph.pull()
        return converted


def tag_colours(codec_context: Any, width: int, height: int) -> None:
    """Declare on an encoder what `FromRgb` makes of YUV: limited range, BT.709 or BT.601 matrix.

    Only the matrix follows the size, as players expect. Curve and primaries are those of BT.709:
    the closest to the RGB of a screen.
    """
    codec_context.colorspace = _BT709_TAG if _is_bt709(width, height) else _BT601_TAG
    codec_context.color_range = _LIMITED_RANGE_TAG
    codec_context.color_primaries = _BT709_TAG
    codec_context.color_trc = _BT709_TAG


def tell_mpeg4_colours(data: bytes, width: int, height: int) -> bytes:
    """A coded MPEG-4 picture that declares the same, which FFmpeg's encoder leaves out.

    Its visual object header says "no signal type"; one with a signal type takes its place. Source:
    ISO/IEC 14496-2, 6.2.2, `video_signal_type`.

    Args:
        data: a packet; returned as it is if it has no such header.
        width, height: of the picture in pixels.
    """
    matrix = _BT709_TAG if _is_bt709(width, height) else _BT601_TAG
    bits = _MPEG4_OBJECT + "1" + _MPEG4_UNSPECIFIED_FORMAT + "0" + "1"
    bits += "".join(f"{tag:08b}" for tag in (_BT709_TAG, _BT709_TAG, matrix)) + "0"
    header = _aligned(_MPEG4_OBJECT + "0" + "0")
    return data.replace(header, _aligned(bits), 1)


# video object, of version 1, with priority 1
_MPEG4_OBJECT = "1" + "0001" + "001" + "0001"
_MPEG4_UNSPECIFIED_FORMAT = "101"


def _aligned(bits: str) -> bytes:
    """A visual object header; the 0 at its end begins the stuffing, which goes on with 1s."""
    bits += "1" * (-len(bits) % 8)
    return b"\0\0\1\xb5" + int(bits, 2).to_bytes(len(bits) // 8, "big")


class Orientation(NamedTuple):
    """How stored pixels become upright: transpose, then mirror columns (x) and rows (y).

    `rotation` is the same in words: degrees clockwise (0, 90, 180, 270), mirroring aside.
    """

    rotation: int = 0
    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Read a frame's display matrix, rounded to quarter turns.

        The matrix (a b u; c d v; x y w) takes column p and row q to column ap + cq, row bp + dq.
        Source: ISO/IEC 14496-12, track header.
        """
        matrix = side_data(frame, "DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
        is_mirrored = a * d < b * c
        degrees = math.degrees(math.atan2(b, -a if is_mirrored else a))
        rotation = round(degrees / 90) * 90 % 360
        if abs(b) > abs(a):
            return cls(rotation, transpose=True, flip_x=c < 0, flip_y=b < 0)
        return cls(rotation, transpose=False, flip_x=a < 0, flip_y=d < 0)

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) as stored -> the same picture upright, contiguous."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.ascontiguousarray(pixels)
