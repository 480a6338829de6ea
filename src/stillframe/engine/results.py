"""Latents of what is not computed: those of the frame before, or of the place that it came from.

Of what moved, the *edit* is taken along, from the frame in which it was computed to the source as
it is now. Around a patch it is taken for linear, as guided filters take it (He et al., Guided Image
Filtering, 2010): result = slope source + offset, with the slope that leaves least of the result's
steps from one latent pixel to the next. The offset is interpolated linearly. So what an edit keeps
of its source is as sharp as the source is now, and what it smooths away does not come back where
interpolation blurs.

Where offsets are even, that is what an edit that computes everything has, and its picture is better
than pixels that were moved: so `MovedPictures.even` says how even they are. Where they are not,
what is decoded beside it is at least in its place: with whole latent pixels of the result instead,
patches beside what moved are twice as far from an edit that computes everything.
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

# Grey levels by which an offset differs from one latent pixel to the next, root mean square. Up to
# the first, what is decoded is better than moved pixels, in every style; from the second on it is
# worse (docs/method.md).
_EVEN, _UNEVEN = 6.0, 12.0
# Squared grey levels of a source's steps, below which its edit's slope is taken for 1: what changes
# there is light.
_FAINT = 1.0
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
    """Results of the latest latent frames of one stream, and their sources.

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
            (B, S*N, P); and of every video and latent frame how even offsets are of what moved,
            (M,) each, see `Moved`: 1 where its picture is to be decoded, 0 where its pixels are to
            be moved.
        """
        first, last = settled[0].first, before[0]
        self.put(first - 1, *before)
        if settled[0].patches[0].mask is not None:
            return self._carried(own, last, source, keep, settled)
        filled, even = [], [list[Tensor]() for _ in settled]
        sources = source.chunk(self._grid.frames, 1)
        for t, frame in enumerate(own.chunk(self._grid.frames, 1)):
            last = torch.where(keep[:, t].unsqueeze(-1), frame, last)
            for b, found in enumerate(settled):
                moved = found.patches[t]
                carried, steps = self._taken(b, moved, sources[t][b, moved.index])
                last[b].index_copy_(0, moved.index, carried)
                even[b].append(((_UNEVEN - steps) / (_UNEVEN - _EVEN)).clamp(0, 1))
            self.put(first + t, last, sources[t])
            filled.append(last)
        return torch.cat(filled, 1), even

    def put(self, number: int, result: Tensor, source: Tensor) -> None:
        """Keep tokens of a latent frame, (B, N, P) each."""
        both = torch.stack([self._latent_pixels(result), self._latent_pixels(source)], 3)
        if self._frames is None:
            self._frames = both.new_zeros(self._count, *both.shape)
        self._frames[number % self._count] = both

    def _latent_pixels(self, tokens: Tensor) -> Tensor:
        """(B, h*p, w*p, C) of (B, N, P)."""
        grid, side = self._grid, self._patch
        pixels = tokens.unflatten(2, (side, side, -1)).unflatten(1, (grid.height, grid.width))
        return pixels.transpose(2, 3).flatten(3, 4).flatten(1, 2)

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
                    found.first + t, self._gains, (_FAINT, _EVEN, _UNEVEN), (row, even[b, t]),
                )  # fmt: skip
        return filled, [list(rows.unbind(0)) for rows in even]

    def _taken(self, video: int, moved: Moved, source: Tensor) -> tuple[Tensor, Tensor]:
        """Results of tokens which moved, (M, P), and the steps of their offsets, (M,) grey levels.

        Args:
            video: which one.
            moved: what moved.
            source: of these tokens now, (M, P).
        """
        assert self._frames is not None
        frames = self._frames[:, video]  # (K, h*p, w*p, 2, C) of results and of their sources
        numbers, places = moved.centres(self._patch)
        number = (numbers % self._count).long()
        height, width = frames.shape[1:3]
        corner = places.floor()
        right, down = (places - corner)[..., None, None].unbind(-3)
        x, y = corner.long().unbind(-1)

        def at(x: Tensor, y: Tensor) -> Tensor:
            return frames[number, y.clamp(0, height - 1), x.clamp(0, width - 1)]

        here, beside, below = at(x, y), at(x + 1, y), at(x, y + 1)
        slope, steps = self._slope(torch.stack([beside - here, below - here]))
        lower = below.lerp(at(x + 1, y + 1), right)
        was, its_source = here.lerp(beside, right).lerp(lower, down).flatten(1, 2).unbind(2)
        now = source.unflatten(1, its_source.shape[1:])
        return (was + slope.view(-1, 1, 1) * (now - its_source)).flatten(1), steps

    def _slope(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of edits from 0 to 1, and steps of what is left of the results, (M,) each.

        Args:
            steps: (2, M, p, p, 2, C) of results and of their sources, to the right and down.
        """
        result, source = (steps @ self._gains).unbind(4)
        own, shared, given = (
            product.mean((0, 2, 3, 4)) for product in (result**2, result * source, source**2)
        )
        slope = ((shared + _FAINT) / (given + _FAINT)).clamp(0, 1)
        left = own - 2 * slope * shared + slope.square() * given
        return slope, left.clamp(min=0).sqrt()
