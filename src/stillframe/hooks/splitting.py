"""Windows of time that a denoiser is called on one after another, and their outputs as one.

At every step all windows are denoised, and what they predict is averaged where they overlap
(Bar-Tal et al., MultiDiffusion, arXiv 2302.08113, over time in the place of columns), so that all
go on from the same latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TimeWindows"]


class TimeWindows(NamedTuple):
    """Windows of so many latent frames, of which each shares some with the next one."""

    length: int
    overlap: int

    def _starts(self, frames: int, step: int) -> range:
        """First frames of windows that may stick out of the clip.

        From step to step they move on by one frame more than they share: where they go over into
        each other lies beside where they did, so over the steps no frames are a border more often
        than others.
        """
        stride = self.length - self.overlap
        return range(-(-step * (self.overlap + 1) % stride), frames - self.overlap, stride)

    def spans(self, frames: int, step: int) -> list[range]:
        """The frames of every window; one that would stick out of the clip sees others instead.

        Args:
            frames: of the clip.
            step: counts from 0, at which windows begin with the clip.
        """
        if frames <= self.length:
            return [range(frames)]
        last = frames - self.length
        starts = [min(max(start, 0), last) for start in self._starts(frames, step)]
        return [range(start, start + self.length) for start in starts]

    def shares(self, frames: int, step: int) -> Tensor:
        """(windows, frames): what share the frames of a clip that is longer than a window have of
        each one's output.

        Within the overlap they go over linearly. A window that would stick out has the frames that
        it would have there.
        """
        time = torch.arange(frames)
        rows = [
            torch.minimum(time - start + 1, start + self.length - time)
            for start in self._starts(frames, step)
        ]
        weights = torch.stack(rows).clamp(0, self.overlap + 1)
        return weights / weights.sum(0)

    def average(self, outputs: Iterable[tuple[Tensor, Tensor]], shares: Tensor, dim: int) -> Tensor:
        """One output of those of windows, in float32.

        Args:
            outputs: frames' numbers and the output of every window. There may be further frames in
                front of the clip, which all windows have.
            shares: see `shares`.
            dim: which axis counts frames.
        """
        total = torch.zeros(())
        for (numbers, output), share in zip(outputs, shares, strict=True):
            leading = len(numbers) - self.length
            if total.ndim == 0:
                shape = list(output.shape)
                shape[dim] = leading + len(share)
                total = output.new_zeros(shape, dtype=torch.float32)
            weight = torch.full((len(numbers),), 1 / len(shares))
            weight[leading:] = share[numbers[leading:] - leading]
            axes = weight.view(-1, *[1] * (output.ndim - 1 - dim)).to(output.device)
            total.index_add_(dim, numbers.to(output.device), output.float() * axes)
        return total
