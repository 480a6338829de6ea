"""The map: the source with recomputed patches highlighted and the others dimmed.

Recomputed patches keep their colour, warmed a little, inside a bright outline; the others are grey
and dark. Those that were reused from another place are bluish, and arrows show from where their
content came to where it is (those of short steps are drawn longer). A bar at the foot shows the
share of patches recomputed in that frame, and behind it the share that moved. Knows pixels and
masks; files and the engine are elsewhere.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillframe.autoencoders.timeline import Timeline

__all__ = ["MaskTrack", "PatchMap", "draw_map"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Displacements = NDArray[np.float32]
Points = NDArray[np.float64]

_TINT = np.array([255, 150, 30], dtype=np.float32)
_TINT_SHARE = 0.15
_OUTLINE = np.array([255, 190, 60], dtype=np.uint8)
_DIM = 0.4
_TRACK = np.array([20, 20, 20], dtype=np.uint8)
_MOVED_TINT = np.array([40, 110, 255], dtype=np.float32)
_MOVED_SHARE = 0.2
_ARROW = np.array([130, 215, 255], dtype=np.uint8)
# from one arrow to the next: so many pixels, and so large a share of the short side
_ARROW_PIXELS, _ARROW_SHARE = 28, 1 / 20
# what moved less, in pixels, is a dot; arrows are drawn no shorter than so many times their stroke
_DOT, _SHORTEST_ARROW = 0.5, 9


class PatchMap(NamedTuple):
    """What became of the patches of a latent frame, or of several.

    Attributes:
        keep: (..., h, w) bool, recomputed.
        moved: (..., h, w) bool, reused from another place; None where nothing was.
        motion: (..., h, w, 2), displacement (x, y) in pixels of what moved since the latent frame
            before: where it comes from less where it is. None where nothing moved.
    """

    keep: Mask
    moved: Mask | None = None
    motion: Displacements | None = None


class MaskTrack:
    """Masks by output frame. Holds the masks of unfinished blocks only.

    Ask for frames in order.

    Args:
        timeline: of the stream.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._masks: deque[PatchMap] = deque()
        self._first = 0

    def add(
        self, keep: Mask, moved: Mask | None = None, motion: Displacements | None = None
    ) -> None:
        """Take the masks of the next block, see `PatchMap`: (S, h, w), and (S, h, w, 2)."""
        for i, kept in enumerate(keep):
            others = (None if each is None else each[i] for each in (moved, motion))
            self._masks.append(PatchMap(kept, *others))

    def at(self, frame: int) -> PatchMap:
        """The masks, (h, w), that output frame ``frame`` was made with.

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


def draw_map(
    source: Pixels,
    keep: Mask,
    patch: int,
    moved: Mask | None = None,
    motion: Displacements | None = None,
) -> Pixels:
    """Draw one frame of the map.

    Args:
        source: uint8 (H, W, 3), at the size of the edited video.
        keep: (h, w) bool, true = recomputed; covers at least H x W.
        patch: side of a token in pixels.
        moved, motion: see `PatchMap`.

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
    kept = _pixels_of(keep, patch, source)
    thickness = max(1, round(min(height, width) / 240))
    warm = source * np.float32(1 - _TINT_SHARE) + _TINT * np.float32(_TINT_SHARE)
    grey = (source.mean(2, keepdims=True, dtype=np.float32) * np.float32(_DIM)).repeat(3, 2)
    if moved is not None:
        moved = moved & ~keep
        share = _pixels_of(moved, patch, source)[..., None] * np.float32(_MOVED_SHARE)
        grey += (_MOVED_TINT - grey) * share
    drawn = np.where(kept[..., None], warm, grey).astype(np.uint8)
    if moved is not None and motion is not None:
        _draw_arrows(drawn, moved, motion, patch, thickness)
    drawn[_inner_border(kept, thickness)] = _OUTLINE
    _draw_bar(drawn, float(keep.mean()), 0.0 if moved is None else float(moved.mean()))
    return drawn


def _pixels_of(mask: Mask, patch: int, source: Pixels) -> Mask:
    """A mask of patches as one of the pixels of a frame."""
    return mask.repeat(patch, 0).repeat(patch, 1)[: source.shape[0], : source.shape[1]]


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


def _draw_arrows(
    drawn: Pixels, moved: Mask, motion: Displacements, patch: int, thickness: int
) -> None:
    """Arrows to patches that moved, from where their content was; so few that they can be told
    apart, and so long that their direction can be seen."""
    apart = max(_ARROW_PIXELS, min(drawn.shape[:2]) * _ARROW_SHARE)
    rows, columns = _spread(moved, max(1, math.ceil(apart / patch)))
    heads = (np.stack([columns, rows], 1) + 0.5) * patch
    shafts = motion[rows, columns].astype(np.float64)
    lengths = np.hypot(*shafts.T)
    strokes = [heads[:, None]]
    far = lengths >= _DOT
    heads, shafts, lengths = heads[far], shafts[far], lengths[far, None]
    drawn_lengths = np.maximum(lengths, _SHORTEST_ARROW * thickness)
    shafts *= drawn_lengths / lengths
    # barbs lean back by 35 degrees
    barb = max(0.3 * patch, 3.5 * thickness) / drawn_lengths
    strokes.append(_line(heads, heads + shafts))
    for angle in (math.radians(35), -math.radians(35)):
        cos, sin = math.cos(angle), math.sin(angle)
        turned = shafts @ np.array([[cos, sin], [-sin, cos]])
        strokes.append(_line(heads, heads + turned * barb))
    _dab(drawn, np.concatenate([each.reshape(-1, 2) for each in strokes]), thickness)


def _spread(moved: Mask, step: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of at most one patch of every step x step: the nearest to its centre."""
    rows, columns = moved.nonzero()
    middle = (step - 1) / 2
    off = (rows % step - middle) ** 2 + (columns % step - middle) ** 2
    order = np.argsort(off, kind="stable")
    cells = rows // step * moved.shape[1] + columns // step
    chosen = order[np.unique(cells[order], return_index=True)[1]]
    return rows[chosen], columns[chosen]


def _line(start: Points, end: Points) -> Points:
    """Points (n, count, 2) along n segments, half a pixel apart or less."""
    count = 2 * math.ceil(np.abs(end - start).max(initial=0)) + 2
    shares = np.linspace(0, 1, count)[None, :, None]
    return start[:, None] * (1 - shares) + end[:, None] * shares


def _dab(drawn: Pixels, points: Points, thickness: int) -> None:
    """Paint squares around points (x, y); what lies outside of the frame is left out."""
    corner = np.floor(points - (thickness - 1) / 2).astype(np.intp)
    offsets = np.arange(thickness)
    for dy in offsets:
        for dx in offsets:
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (x >= 0) & (y >= 0) & (x < drawn.shape[1]) & (y < drawn.shape[0])
            drawn[y[inside], x[inside]] = _ARROW


def _draw_bar(drawn: Pixels, share: float, moved: float) -> None:
    """A bar in the lower left corner, a third of the width long, filled to ``share`` and then in
    another colour by ``moved``."""
    height, width = drawn.shape[:2]
    margin, thick = max(1, height // 60), max(3, height // 40)
    length = max(3, width // 3)
    bar = drawn[height - margin - thick : height - margin, margin : margin + length]
    bar[:] = _TRACK
    inside = bar[1:-1, 1:-1]
    first, last = (round(part * inside.shape[1]) for part in (share, share + moved))
    inside[:, :first] = _OUTLINE
    inside[:, first:last] = _ARROW
