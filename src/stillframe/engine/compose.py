"""Composing: what is not computed shows the picture that was shown, pixel for pixel.

A decoder gives the same latents another picture in each of its phases, and near what changes; a
place that nothing happens in would shimmer. So pixels of a patch that was reused are those of the
last frame that showed it. Latents are restored all the same, for what follows (``restore``).

Where old and new pixels meet, both are right to within the tolerance, and differ by as much. On the
old side of a border that difference is known: it is what the decoder would have shown there less
what is shown. The new side is moved by it, less and less with the distance from the border, so that
the two meet. Nothing old is mixed into new pixels: what moves leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.pixels import enlarged
from stillframe.detection.traces import middle
from stillframe.engine.moved import DenseMoves, MovedPictures, Mover, Rings
from stillframe.kernels.graphs import Graphs
from stillframe.kernels.shared import Find, Memory, own_workplaces

__all__ = ["REACH", "ShownPictures", "meet"]

#: Pixels from a border within which new pictures are moved.
REACH = 12

_CELL = 4  # pixels a side, in whose means differences are taken and spread
_CELLS = 2  # on either side of a cell, over which they are


def meet(new: Tensor, shown: Tensor, reused: Tensor) -> Tensor:
    """New pictures, moved so that they meet what is shown.

    Args:
        new, shown: (B, T, 3, H, W) in [0, 1].
        reused: (B, H, W) bool, where ``shown`` stays.

    Returns:
        (B, T, 3, H, W): ``shown`` where it stays, else ``new``, moved within `REACH` of that.
    """
    mask = reused.unsqueeze(1).unsqueeze(1)
    known, side = mask.to(new.dtype), math.gcd(_CELL, *new.shape[-2:])
    weight = _spread(known, side)
    difference = _spread((shown - new) * known, side) / weight.clamp(min=1e-4)
    # of the cells around the first one beside a straight border, 2 of 5 columns are old
    share = (weight * (2 * _CELLS + 1) / _CELLS).clamp(max=1)
    shift = F.interpolate((difference * share).flatten(0, 1), new.shape[-2:], mode="bilinear")
    return torch.where(mask, shown, (new + shift.view_as(new)).clamp(0, 1))


def _spread(x: Tensor, side: int) -> Tensor:
    """Mean of cells, and of 5x5 cells around each of those; zero beyond edges."""
    cells = F.avg_pool2d(x.flatten(0, 1), side)
    spread = F.avg_pool2d(cells, 2 * _CELLS + 1, stride=1, padding=_CELLS)
    return spread.unflatten(0, x.shape[:2])


class ShownPictures:
    """The pictures of one stream as they are shown.

    Args:
        temporal: pixel frames of a latent frame.
        block_frames: latent frames of a block.
        find: the workplace, which may make a CUDA graph of the work: it is many small kernels.
    """

    def __init__(self, temporal: int, block_frames: int, find: Find | None = None) -> None:
        self._temporal, self._block_frames = temporal, block_frames
        self._find = find or own_workplaces()
        self._memory: Memory | None = None
        self._rings = Rings(block_frames)
        self._shown: Tensor | None = None
        self._middle = torch.empty(0)

    def compose(
        self,
        frames: Tensor,
        keep: Tensor,
        whole: bool,
        lacking: int = 0,
        untouched: Tensor | None = None,
        moved: MovedPictures | None = None,
    ) -> Tensor:
        """Pictures of the next block.

        Args:
            frames: (B, T, 3, H, W) as decoded.
            keep: (B, S, h, w) bool; where it is false, what was shown stays.
            whole: whether all of it is true, so that nothing stays.
            lacking: pixel frames by which the block is short in front.
            untouched: (B, S, h, w) bool, where pictures stay as they are decoded.
            moved: what is not computed and comes from elsewhere; None: nothing.

        Returns:
            (B, T, 3, H, W).
        """
        if not frames.shape[1]:
            return frames
        if not whole and self._shown is not None:
            graphs = self._enter(frames, keep).place.graphs()
            sparse = moved is not None and not moved.dense
            # a video ends with a shorter block, which comes once
            short = lacking > 0 or frames.shape[1] < self._temporal * self._block_frames
            given = self._shown, self._middle, frames, keep
            if graphs is None or untouched is not None or sparse or short:
                mover = None if moved is None else self._mover(moved)
                frames = self._composed(*given, lacking, untouched, mover)
            else:
                frames = self._replayed(graphs, given, moved)
        self._shown = frames[:, -1:].clone()
        self._middle = self._middle_of(frames[:, -self._temporal :]).clone()
        return frames

    def _middle_of(self, frames: Tensor) -> Tensor:
        """What (B, 3, H, W) is kept of a latent frame, which a video's end may cut short."""
        return frames[:, min(middle(self._temporal), frames.shape[1] - 1)]

    def _enter(self, frames: Tensor, keep: Tensor) -> Memory:
        """Find what was shown where streams with pictures of this size take turns."""
        if self._memory is None:
            _, _, *picture = frames.shape
            kind = frames.dtype, frames.device
            key = self._temporal, self._block_frames, len(frames), *picture, *kind, keep.shape
            self._memory = Memory(self._find("pictures", key))
            self._rings = Rings(self._block_frames, self._memory)
        self._memory.enter()
        return self._memory

    def _mover(self, moved: MovedPictures) -> Mover:
        if not moved.dense:
            return self._rings.sparse(moved, self._middle)
        return self._rings.dense(moved.tensors, self._middle)

    def _replayed(
        self, graphs: Graphs, given: Sequence[Tensor], moved: MovedPictures | None
    ) -> Tensor:
        """`_composed` of a whole block as a graph, on buffers that never move."""
        assert self._memory is not None
        key = moved is not None
        given = [*given, *(() if moved is None else moved.tensors)]
        buffers = [
            self._memory.zeros(("given", i), x.shape, x.device, x.dtype, keep=False)
            for i, x in enumerate(given)
        ]
        for buffer, x in zip(buffers, given, strict=True):
            buffer.copy_(x)
        mover: Mover | None = None
        if moved is not None:
            mover = self._rings.dense(DenseMoves(*buffers[4:]), buffers[1])
        was, middles, new, mask = buffers[:4]
        done: Tensor = graphs.run(
            key, lambda: self._composed(was, middles, new, mask, 0, None, mover)
        )
        return done.clone()

    def _composed(
        self,
        shown: Tensor,
        before: Tensor,
        frames: Tensor,
        keep: Tensor,
        lacking: int,
        untouched: Tensor | None,
        mover: Mover | None,
    ) -> Tensor:
        """Pictures of a block, of which ``before`` (B, 3, H, W) is the snapshot before it."""
        if mover is not None:
            mover.remember(-1, before)
        patch = frames.shape[-2] // keep.shape[-2], frames.shape[-1] // keep.shape[-1]
        parts, end = [], frames.shape[1]
        for t, computed in enumerate(keep.unbind(1)):
            first, last = (max(k * self._temporal - lacking, 0) for k in (t, t + 1))
            new = frames[:, first : min(last, end)]
            if not new.shape[1]:
                continue
            free = computed if untouched is None else computed | untouched[:, t]
            stays = shown.expand_as(new) if mover is None else mover.moved(shown, new, t)
            met = meet(new, stays, ~enlarged(free, patch))
            if untouched is not None:
                left = enlarged(untouched[:, t], patch).unsqueeze(1).unsqueeze(1)
                met = torch.where(left, new, met)
            parts.append(met)
            shown = parts[-1][:, -1:]
            if mover is not None:
                mover.remember(t, self._middle_of(met))
        return torch.cat(parts, 1)
