"""Holding: what is not computed shows the picture that was shown, pixel for pixel.

A decoder gives the same latents another picture in each of its phases, and near what changes; a
place that nothing happens in would shimmer. So pixels of a patch that was reused are those of the
last frame that showed it. Latents are restored all the same, for what follows (``restore``).

Where held and new pixels meet, both are right to within the tolerance, and differ by as much. On
the held side of a border that difference can be seen: it is what the decoder would have shown there
less what is held. The new side is moved by it, less and less with the distance from the border, so
that the two meet. Nothing held is mixed into new pixels: what moves leaves no trace.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.visible import enlarged

__all__ = ["Held", "meet"]

REACH = 8  # pixels on either side of a border


def meet(new: Tensor, held: Tensor, reused: Tensor, reach: int = REACH) -> Tensor:
    """New pictures, moved so that they meet what is held.

    Args:
        new, held: (B, T, 3, H, W) in [0, 1].
        reused: (B, H, W) bool, where ``held`` is shown.
        reach: pixels from the border within which ``new`` is moved; 0 moves nothing.

    Returns:
        (B, T, 3, H, W): ``held`` where it is shown, else ``new`` moved.
    """
    mask = reused.unsqueeze(1).unsqueeze(1)
    if reach:
        known = mask.to(new.dtype)
        weight = _spread(known, reach)
        difference = _spread((held - new) * known, reach) / weight.clamp(min=1e-6)
        # the share of held pixels around falls from a half at a straight border to 0 at its reach
        new = (new + difference * (2 * weight).clamp(max=1)).clamp(0, 1)
    return torch.where(mask, held, new)


def _spread(x: Tensor, reach: int) -> Tensor:
    """Mean over squares around each pixel, twice ``reach`` and one a side; zero beyond edges."""
    flat = x.flatten(0, 1)
    tall = F.avg_pool2d(flat, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    wide = F.avg_pool2d(tall, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return wide.unflatten(0, x.shape[:2])


class Held:
    """The picture of one stream that is shown.

    Args:
        temporal: pixel frames of a latent frame.
    """

    def __init__(self, temporal: int) -> None:
        self._temporal = temporal
        self._shown: Tensor | None = None

    def compose(
        self,
        frames: Tensor,
        keep: Tensor,
        whole: bool,
        lacking: int = 0,
        untouched: Tensor | None = None,
    ) -> Tensor:
        """Pictures of the next block.

        Args:
            frames: (B, T, 3, H, W) as decoded.
            keep: (B, S, h, w) bool; where it is false, what was shown stays.
            whole: whether all of it is true, so that nothing stays.
            lacking: pixel frames by which the block is short in front.
            untouched: (B, S, h, w) bool, where pictures stay as they are decoded.

        Returns:
            (B, T, 3, H, W).
        """
        if not frames.shape[1]:
            return frames
        if not whole and self._shown is not None:
            frames = self._composed(frames, keep, lacking, untouched)
        self._shown = frames[:, -1:].clone()
        return frames

    def _composed(
        self, frames: Tensor, keep: Tensor, lacking: int, untouched: Tensor | None
    ) -> Tensor:
        patch = frames.shape[-2] // keep.shape[-2], frames.shape[-1] // keep.shape[-1]
        shown, parts, end = self._shown, [], frames.shape[1]
        assert shown is not None
        for t, computed in enumerate(keep.unbind(1)):
            first, last = (max(k * self._temporal - lacking, 0) for k in (t, t + 1))
            new = frames[:, first : min(last, end)]
            if not new.shape[1]:
                continue
            free = computed if untouched is None else computed | untouched[:, t]
            met = meet(new, shown.expand_as(new), ~enlarged(free, patch))
            if untouched is not None:
                left = enlarged(untouched[:, t], patch).unsqueeze(1).unsqueeze(1)
                met = torch.where(left, new, met)
            parts.append(met)
            shown = parts[-1][:, -1:]
        return torch.cat(parts, 1)
