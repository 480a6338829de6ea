"""Latents of what is not computed: those of the frame before, or of the place that it came from.

What moved is taken at the nearest latent pixel of the frame in which it was computed, so that steps
that are small against a latent pixel add up and nothing is a copy of a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillframe.detection.motion import LONGEST, Moved, Settled
from stillframe.tokens.grid import Grid

__all__ = ["Results"]


class Results:
    """Results of the latest latent frames of one stream.

    Args:
        grid: of a block.
        patch: side of a token in latent pixels.
    """

    def __init__(self, grid: Grid, patch: int) -> None:
        self._grid, self._patch = grid, patch
        self._count = LONGEST + grid.frames + 1
        self._frames: Tensor | None = None

    def restore(
        self, own: Tensor, previous: Tensor, keep: Tensor, settled: Sequence[Settled]
    ) -> Tensor:
        """Fill a block's pruned slots.

        Args:
            own: (B, S*N, P); rows of pruned slots are ignored.
            previous: (B, N, P), the frame before the block.
            keep: (B, S, N) bool, computed.
            settled: what became of the others, of each video.

        Returns:
            (B, S*N, P).
        """
        grid, before = self._grid, previous
        first = settled[0].first
        self._put(first - 1, previous)
        for t in range(grid.frames):
            here = slice(t * grid.frame_tokens, (t + 1) * grid.frame_tokens)
            frame = torch.where(keep[:, t].unsqueeze(-1), own[:, here], before)
            for b, found in enumerate(settled):
                moved = found.patches[t]
                if len(moved.index):
                    frame[b].index_copy_(0, moved.index, self._taken(b, moved))
            self._put(first + t, frame)
            own = own if t else own.clone()
            own[:, here] = before = frame
        return own

    def _put(self, number: int, tokens: Tensor) -> None:
        grid, side = self._grid, self._patch
        pixels = tokens.unflatten(2, (side, side, -1)).unflatten(1, (grid.height, grid.width))
        pixels = pixels.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, h*p, w*p, C)
        if self._frames is None:
            self._frames = pixels.new_zeros(self._count, *pixels.shape)
        self._frames[number % self._count] = pixels

    def _taken(self, video: int, moved: Moved) -> Tensor:
        """Tokens (M, P) of what moved."""
        assert self._frames is not None
        numbers, places = moved.centres(self._patch)
        height, width = self._frames.shape[2:4]
        x, y = places.round().long().unbind(-1)
        taken = self._frames[
            (numbers % self._count).long(), video, y.clamp(0, height - 1), x.clamp(0, width - 1)
        ]
        return taken.flatten(1)
