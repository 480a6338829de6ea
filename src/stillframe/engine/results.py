"""Latents of what is not computed: those of the frame before, or of the place that it came from.

Of what moved, the *edit* is taken along, the result less its source, by linear interpolation from
the frame in which it was computed, and added to the source as it is now. Where an edit is even,
that is what an edit that computes everything has, and its picture is better than pixels that were
moved: so `Taken.even` says how even it is. Where it is not, what is decoded beside it is at least
in its place: with whole latent pixels of the result instead, patches beside what moved are twice as
far from an edit that computes everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.motion import Settled
from stillframe.detection.traces import LONGEST, Moved
from stillframe.kernels.snapshots import carry
from stillframe.tokens.grid import Grid

__all__ = ["Results", "drawn_lines"]

# Grey levels by which an edit differs from one latent pixel to the next, root mean square. Up to
# the first, what is decoded is better than moved pixels, in every style; from the second on it is
# worse (docs/method.md).
_EVEN, _UNEVEN = 6.0, 12.0
# The same of an edit and of its result alike: from here on it draws lines, and moved pieces of them
# do not meet those that are computed beside them.
_LINES = 24.0


def drawn_lines(result: Tensor, source: Tensor, grid: Grid, gains: Tensor) -> Tensor:
    """Where an edit draws lines that its source has not, and one patch around.

    Args:
        result, source: of a latent frame, (B, N, P) each.
        grid: h x w patches.
        gains: (C, C) see ``StreamingAutoencoder.channel_gains``.

    Returns:
        (B, h, w) bool.
    """
    side = round((result.shape[2] / len(gains)) ** 0.5)
    both = torch.cat([result, result - source])
    levels = (both.unflatten(2, (side, side, -1)) @ gains).unflatten(1, (grid.height, grid.width))
    levels = levels.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (2B, h*p, w*p, C)
    square = levels.new_zeros(levels.shape[:-1])
    square[:, :, :-1] += (levels[:, :, 1:] - levels[:, :, :-1]).square().mean(-1)
    square[:, :-1] += (levels[:, 1:] - levels[:, :-1]).square().mean(-1)
    steps = F.avg_pool2d(square.unsqueeze(1) / 2, side).sqrt()
    of_result, of_edit = steps.chunk(2)
    lines = (torch.minimum(of_result, of_edit) >= _LINES).float()
    return F.max_pool2d(lines, 3, 1, 1).squeeze(1) > 0


class Results:
    """Edits of the latest latent frames of one stream.

    Args:
        grid: of a block.
        patch: side of a token in latent pixels.
        gains: (C, C) see ``StreamingAutoencoder.channel_gains``.
    """

    def __init__(self, grid: Grid, patch: int, gains: Tensor) -> None:
        self._grid, self._patch, self._gains = grid, patch, gains
        self._count = LONGEST + grid.frames + 1
        self._frames: Tensor | None = None

    def restore(
        self,
        own: Tensor,
        before: tuple[Tensor, Tensor],
        source: Tensor,
        keep: Tensor,
        settled: Sequence[Settled],
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Fill a block's pruned slots.

        Args:
            own: (B, S*N, P); rows of pruned slots are ignored.
            before: result and source of the frame before the block, (B, N, P) each.
            source: of the block, (B, S*N, P).
            keep: (B, S, N) bool, computed.
            settled: what became of the others, of each video.

        Returns:
            (B, S*N, P); and of every video and latent frame how even the edit is of what moved,
            (M,) each, see `Moved`: 1 where its picture is to be decoded, 0 where its pixels are to
            be moved.
        """
        first, (last, its_source) = settled[0].first, before
        self.put(first - 1, last - its_source)
        if settled[0].patches[0].mask is not None:
            return self._carried(own, last, source, keep, settled)
        filled, even = [], [list[Tensor]() for _ in settled]
        sources = source.chunk(self._grid.frames, 1)
        for t, frame in enumerate(own.chunk(self._grid.frames, 1)):
            last = torch.where(keep[:, t].unsqueeze(-1), frame, last)
            for b, found in enumerate(settled):
                moved = found.patches[t]
                edit, steps = self._edit(b, moved)
                last[b].index_copy_(0, moved.index, sources[t][b, moved.index] + edit)
                even[b].append(((_UNEVEN - steps) / (_UNEVEN - _EVEN)).clamp(0, 1))
            self.put(first + t, last - sources[t])
            filled.append(last)
        return torch.cat(filled, 1), even

    def put(self, number: int, tokens: Tensor) -> None:
        """Keep the edit of a latent frame, (B, N, P)."""
        grid, side = self._grid, self._patch
        pixels = tokens.unflatten(2, (side, side, -1)).unflatten(1, (grid.height, grid.width))
        pixels = pixels.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, h*p, w*p, C)
        if self._frames is None:
            self._frames = pixels.new_zeros(self._count, *pixels.shape)
        self._frames[number % self._count] = pixels

    def _carried(
        self, own: Tensor, last: Tensor, source: Tensor, keep: Tensor, settled: Sequence[Settled]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """`restore` by kernels, where all patches are there."""
        assert self._frames is not None
        size, filled = self._grid.frame_tokens, torch.empty_like(own)
        even = own.new_empty(keep.shape, dtype=torch.float32)
        for b, found in enumerate(settled):
            row = last[b]
            for t, moved in enumerate(found.patches):
                assert moved.mask is not None
                here = slice(t * size, (t + 1) * size)
                given = own[b, here], row, source[b, here], keep[b, t]
                row = filled[b, here]
                carry(
                    given, moved.mask, (moved.numbers, moved.places), self._frames[:, b],
                    found.first + t, self._gains, (_EVEN, _UNEVEN), (row, even[b, t]),
                )  # fmt: skip
        return filled, [list(rows.unbind(0)) for rows in even]

    def _edit(self, video: int, moved: Moved) -> tuple[Tensor, Tensor]:
        """That of tokens which moved, (M, P), and how far its pixels differ, (M,) grey levels."""
        assert self._frames is not None
        frames = self._frames[:, video]
        numbers, places = moved.centres(self._patch)
        number = (numbers % self._count).long()
        height, width = frames.shape[1:3]
        corner = places.floor()
        right, down = (places - corner).unsqueeze(-1).unbind(-2)
        x, y = corner.long().unbind(-1)

        def at(x: Tensor, y: Tensor) -> Tensor:
            return frames[number, y.clamp(0, height - 1), x.clamp(0, width - 1)]

        here, beside, below = at(x, y), at(x + 1, y), at(x, y + 1)
        steps = torch.stack([beside - here, below - here]) @ self._gains
        lower = below.lerp(at(x + 1, y + 1), right)
        edit = here.lerp(beside, right).lerp(lower, down).flatten(1)
        return edit, steps.square().mean((0, 2, 3, 4)).sqrt()
