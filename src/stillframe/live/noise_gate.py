"""Replaces frames in which only sensor noise has changed by the one before, in pixels.

A camera's picture of a still scene is never the same twice, so an autoencoder would encode every
frame of it anew. Here such a frame is exchanged for the one before, exactly, and what comes after
(``streaming``) answers from memory what it was asked before. Whole frames are exchanged or none:
where anything moves, nothing is touched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["NoiseGate", "only_noise"]

_SMALL, _LARGE = 8, 16


def only_noise(frames: Tensor, reference: Tensor, noise: float) -> Tensor:
    """Which frames differ from another by no more than noise.

    Two bounds, for noise of standard deviation ``noise`` in either frame. The mean difference of
    any channel over any patch of 8x8 pixels is below ``noise``: noise cancels out in it (its
    deviation is noise * sqrt(2) / 8) and light and edges do not. The root mean square of the
    difference over any patch of 16x16 pixels is below 2 ``noise`` (noise gives sqrt(2) ``noise``):
    that catches what is smaller than a patch.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        reference: (3, H, W).
        noise: in grey levels, of 255.

    Returns:
        (T,) bool.
    """
    difference = 255 * (frames - reference)
    mean = functional.avg_pool2d(difference, _SMALL, ceil_mode=True).abs().flatten(1).amax(1)
    power = difference.square().mean(1, keepdim=True)
    square = functional.avg_pool2d(power, _LARGE, ceil_mode=True).flatten(1).amax(1)
    return (mean < noise) & (square < (2 * noise) ** 2)


class NoiseGate:
    """Exchanges frames that only noise tells from the last one that was let through.

    The comparison is with that one, not with the frame before: slow change adds up until it shows.
    So what is handed on differs from what came in by less than `only_noise` allows, always.

    Args:
        noise: standard deviation of the camera's noise, in grey levels; 0 lets everything through.

    Attributes:
        exchanged: how many frames were.

    Raises:
        ValueError: the noise is negative.
    """

    def __init__(self, noise: float) -> None:
        if not noise >= 0:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.exchanged = 0
        self._noise = noise
        self._reference: Tensor | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (T, 3, H, W) in [0, 1], in order; the same with those exchanged."""
        if self._noise == 0:
            return frames
        out, rest = [], frames
        while len(rest):
            if self._reference is None:
                count = 0
            else:
                still = only_noise(rest, self._reference, self._noise)
                # how many at the head: as long as no other one has been let through
                count = int(still.long().cumprod(0).sum())
            if count and self._reference is not None:
                out.append(self._reference.expand(count, -1, -1, -1))
                self.exchanged += count
            if count < len(rest):
                self._reference = rest[count].clone()
                out.append(rest[count : count + 1])
            rest = rest[count + 1 :]
        return torch.cat(out) if out else frames
