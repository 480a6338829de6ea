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
from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.pixels import enlarged
from stillframe.detection.traces import middle
from stillframe.engine.moved import MovedPictures, Mover, Rings
from stillframe.kernels.graphs import Graphs

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
        graphs: whether to make a CUDA graph of the work, which is many small kernels.
    """

    def __init__(self, temporal: int, block_frames: int, graphs: bool = False) -> None:
        self._temporal = temporal
        self._rings = Rings(block_frames)
        self._places: list[int] = []
        self._shown: Tensor | None = None
        self._middle = torch.empty(0)
        self._graphs = Graphs() if graphs else None
        self._buffers: dict[Hashable, list[Tensor]] = {}

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
            sparse = moved is not None and not moved.dense
            if self._graphs is None or untouched is not None or sparse:
                mover = None if moved is None else self._mover(moved)
                given = self._shown, self._middle, frames, keep, lacking
                frames = self._composed(*given, untouched, mover)
            else:
                given = self._shown, self._middle, frames, keep, lacking
                frames = self._replayed(self._graphs, *given, moved)
        self._shown = frames[:, -1:].clone()
        self._middle = self._middle_of(frames[:, -self._temporal :]).clone()
        return frames

    def _middle_of(self, frames: Tensor) -> Tensor:
        """What (B, 3, H, W) is kept of a latent frame, which a video's end may cut short."""
        return frames[:, min(middle(self._temporal), frames.shape[1] - 1)]

    def _mover(self, moved: MovedPictures) -> Mover:
        if not moved.dense:
            return self._rings.sparse(moved, self._middle)
        number = torch.full((), moved.settled[0].first, device=self._middle.device)
        return self._rings.dense(number, moved.patches, moved.tensors, self._middle)

    def _replayed(
        self,
        graphs: Graphs,
        shown: Tensor,
        before: Tensor,
        frames: Tensor,
        keep: Tensor,
        lacking: int,
        moved: MovedPictures | None,
    ) -> Tensor:
        """`_composed` as a graph, on buffers that never move."""
        given = [shown, before, frames, keep]
        key: Hashable = (frames.shape, frames.dtype, lacking)
        if moved is not None:
            number = torch.full((), moved.settled[0].first, device=frames.device)
            given += [number, *moved.tensors]
            self._start_anew(graphs, moved)
            key = key, "moved"
        buffers = self._buffers.setdefault(key, [torch.empty_like(x) for x in given])
        for buffer, x in zip(buffers, given, strict=True):
            buffer.copy_(x)
        was, middles, new, mask = buffers[:4]
        mover: Mover | None = None
        if moved is not None:
            mover = self._rings.dense(buffers[4], moved.patches, buffers[5:], before)
        done: Tensor = graphs.run(
            key, lambda: self._composed(was, middles, new, mask, lacking, None, mover)
        )
        return done.clone()

    def _start_anew(self, graphs: Graphs, moved: MovedPictures) -> None:
        """Drop graphs of patches that have moved: they stay where they are as motion goes on."""
        places = [found.patches[0].places.data_ptr() for found in moved.settled]
        if places != self._places:
            graphs.forget()
            self._buffers.clear()
            self._places = places

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
