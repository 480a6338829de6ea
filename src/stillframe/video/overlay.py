"""The map: the source with recomputed patches highlighted and pruned ones dimmed.

Recomputed patches keep their colour, warmed a little, inside a bright outline; pruned ones are grey
and dark. A bar at the foot shows the share of patches kept in that frame. Knows pixels and keep
masks; files and the engine are elsewhere.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from stillframe.autoencoders.timeline import Timeline

__all__ = ["MaskTrack", "draw_map"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_TINT = np.array([255, 150, 30], dtype=np.float32)
_TINT_SHARE = 0.15
_OUTLINE = np.array([255, 190, 60], dtype=np.uint8)
_DIM = 0.4
_TRACK = np.array([20, 20, 20], dtype=np.uint8)


class MaskTrack:
    """Keep masks by output frame. Holds the masks of unfinished blocks only.

    Ask for frames in order.

    Args:
        timeline: of the stream.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._masks: deque[Mask] = deque()
        self._first = 0

    def add(self, keep: Mask) -> None:
        """Take the masks of the next block, (S, h, w) bool, true = recomputed."""
        self._masks.extend(keep)

    def at(self, frame: int) -> Mask:
        """The (h, w) mask that output frame ``frame`` was made with.

        Raises:
            IndexError: if its block has not been added, or it lies before a frame asked for.
        """
        latent = self._timeline.output_latent(frame)
        if not self._first <= latent < self._first + len(self._masks):
            held = f"{self._first} to {self._first + len(self._masks) - 1}"
            raise IndexError(f"latent frame {latent} of frame {frame} is not among {held}")
        while self._first < latent:
            self._masks.popleft()
            self._first += 1
        return self._masks[0]


def draw_map(source: Pixels, keep: Mask, patch: int) -> Pixels:
    """Draw one frame of the map.

    Args:
        source: uint8 (H, W, 3), at the size of the edited video.
        keep: (h, w) bool, true = recomputed; covers at least H x W.
        patch: side of a token in pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if the mask does not cover the frame.
    """
    height, width = source.shape[:2]
    if keep.shape[0] * patch < height or keep.shape[1] * patch < width:
        raise ValueError(
            f"{keep.shape[1]}x{keep.shape[0]} patches of {patch} pixels do not cover a frame of "
            f"{width}x{height}"
        )
    kept = keep.repeat(patch, 0).repeat(patch, 1)[:height, :width]
    warm = source * np.float32(1 - _TINT_SHARE) + _TINT * np.float32(_TINT_SHARE)
    grey = (source.mean(2, keepdims=True, dtype=np.float32) * np.float32(_DIM)).repeat(3, 2)
    drawn = np.where(kept[..., None], warm, grey).astype(np.uint8)
    drawn[_inner_border(kept, max(1, round(min(height, width) / 240)))] = _OUTLINE
    _draw_bar(drawn, float(keep.mean()))
    return drawn


def _inner_border(region: Mask, thickness: int) -> Mask:
    """Pixels of ``region`` within ``thickness`` of a pixel outside it; frame edges do not count."""
    core = region.copy()
    for _ in range(thickness):
        shrunk = core.copy()
        shrunk[1:] &= core[:-1]
        shrunk[:-1] &= core[1:]
        shrunk[:, 1:] &= core[:, :-1]
        shrunk[:, :-1] &= core[:, 1:]
        core = shrunk
    return region & ~core


def _draw_bar(drawn: Pixels, share: float) -> None:
    """A bar in the lower left corner, a third of the width long, filled to ``share``."""
    height, width = drawn.shape[:2]
    margin, thick = max(1, height // 60), max(3, height // 40)
    length = max(3, width // 3)
    bar = drawn[height - margin - thick : height - margin, margin : margin + length]
    bar[:] = _TRACK
    inside = bar[1:-1, 1:-1]
    inside[:, : round(share * inside.shape[1])] = _OUTLINE
