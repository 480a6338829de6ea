"""Motion vectors of a decoded picture, as a map of its blocks.

FFmpeg tells for each block where it was predicted from. It tells nothing of blocks that were coded
anew, and of no block whether a residual was added. Some decoders tell nothing at all: HEVC's, AV1's
and VP9's among them. Knows pictures and blocks, neither models nor what the map is for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from stillframe.video.library import side_data
from stillframe.video.picture import Orientation

__all__ = ["CODECS", "BlockMotion", "export_vectors", "read_motion"]

#: Codecs of which FFmpeg tells vectors.
CODECS = ("h264", "mpeg2video", "mpeg4")

_CELL = 8
# pixels: encoders give still blocks vectors of a part of a pixel where noise happens to fit
_LEAST = 1.0


class BlockMotion(NamedTuple):
    """Blocks of a picture that its codec moved.

    Attributes:
        moved, unknown: (rows, columns) bool, upright cells of one size that cover the picture.
            Nothing is both.
        extent: shares of all cells, across and down, that the picture fills.
    """

    moved: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    extent: tuple[float, float]


def export_vectors(codec_context: Any) -> None:
    """Have a decoder tell vectors; before its first packet."""
    codec_context.options = {**codec_context.options, "flags2": "+export_mvs"}


def read_motion(picture: av.VideoFrame, orientation: Orientation) -> BlockMotion:
    """The map of a picture; a picture without vectors is unknown all over."""
    rows, columns = -(-picture.height // _CELL), -(-picture.width // _CELL)
    moved = np.zeros((rows, columns), np.bool_)
    known = moved.copy()
    vectors = side_data(picture, "MOTION_VECTORS")
    if vectors is not None:
        _mark(vectors.to_ndarray(), moved, known)
    maps = np.stack([moved, ~known], -1)
    extent = picture.width / (columns * _CELL), picture.height / (rows * _CELL)
    if orientation != Orientation():
        # turned round, an edge that cells overlap would come first
        pixels = maps.repeat(_CELL, 0).repeat(_CELL, 1)[: picture.height, : picture.width]
        maps = orientation.apply(pixels.astype(np.uint8)).astype(np.bool_)
        extent = 1.0, 1.0
    return BlockMotion(
        np.ascontiguousarray(maps[..., 0]), np.ascontiguousarray(maps[..., 1]), extent
    )


def _mark(vectors: NDArray[Any], moved: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
    """Write down every cell that a vector is for, and whether it is long enough."""
    length = np.maximum(np.abs(vectors["motion_x"]), np.abs(vectors["motion_y"]))
    far = length >= _LEAST * np.maximum(vectors["motion_scale"], 1)
    left = vectors["dst_x"].astype(np.int64) - vectors["w"] // 2
    top = vectors["dst_y"].astype(np.int64) - vectors["h"] // 2
    height, width = moved.shape
    for down in range(0, int(vectors["h"].max(initial=0)), _CELL):
        for across in range(0, int(vectors["w"].max(initial=0)), _CELL):
            y, x = (top + down) // _CELL, (left + across) // _CELL
            here = (vectors["h"] > down) & (vectors["w"] > across)
            here &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
            known[y[here], x[here]] = True
            moved[y[here & far], x[here & far]] = True
