"""Frames with channels last in buffers that never move, and which cells of them to compute."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillframe.kernels.maps import list_cells

__all__ = ["ChosenCells", "Frames", "padded_channels", "scratch"]

_CHANNELS = 16  # the least depth of a product that tensor cores take


def padded_channels(channels: int) -> int:
    """Channels of frames that a convolution may read: a multiple of what a product takes."""
    return channels + -channels % _CHANNELS


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames (B, T, H, W, C) within a buffer.

    Attributes:
        base: (B, past + T, H + 2*border, W + 2*border, C), contiguous but for its first dimension.
        past: frames before, which convolutions in time look at.
        border: pixels around every picture, zeros, which convolutions in space look at.
    """

    base: Tensor
    past: int = 0
    border: int = 0

    @property
    def everything(self) -> Tensor:
        """(B, past + T, H, W, C) without borders."""
        if not self.border:
            return self.base
        return self.base[:, :, self.border : -self.border, self.border : -self.border]

    @property
    def latest(self) -> Tensor:
        """(B, T, H, W, C) without what was before."""
        return self.everything[:, self.past :]

    def last(self, count: int) -> Frames:
        """The last frames, ``count`` of them, and as many before them as these have."""
        return Frames(
            self.base[:, self.base.shape[1] - self.past - count :], self.past, self.border
        )

    @property
    def rows(self) -> Tensor:
        """(pixels, C) of the whole buffer."""
        return self.base.view(-1, self.base.shape[4])

    def places(self, cells: ChosenCells, side: int, step: int = 1) -> Tensor:
        """Rows of the first frame's pixels, at every ``step``-th row and column of the picture.

        Args:
            cells: a picture is made of.
            side: pixels along the side of a cell, counted in steps.

        Returns:
            (N,) int64.
        """
        video, y, x = cells.pixels(side)
        _, frames, height, width, _ = self.base.shape
        row, column = y * step + self.border, x * step + self.border
        return (video * frames * height + row) * width + column

    @property
    def area(self) -> int:
        """Rows of a frame."""
        return self.base.shape[2] * self.base.shape[3]


def scratch(like: Tensor, shape: tuple[int, int, int, int, int]) -> Frames:
    """Frames (B, T, H, W, C) of dtype and device of another tensor, with nothing in them."""
    *sizes, channels = shape
    padded = padded_channels(channels)
    # channels that nobody writes are multiplied by zero, which leaves NaN what it is
    make = like.new_empty if padded == channels else like.new_zeros
    return Frames(make((*sizes, padded)))


@dataclass(frozen=True, eq=False)
class ChosenCells:
    """Some cells of a latent frame, as a list and one by one.

    Attributes:
        chosen: (B, h, w) bool.
        numbers, count: of their `CellList`; where the device is a GPU nobody else knows how many.
    """

    chosen: Tensor
    numbers: Tensor
    count: Tensor
    _pixels: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(chosen: Tensor) -> ChosenCells:
        """Lists cells without waiting for the device."""
        (listed,) = list_cells(chosen.unsqueeze(1))
        assert listed.numbers is not None
        assert listed.length is not None
        return ChosenCells(chosen, listed.numbers, listed.length)

    @property
    def on_device(self) -> bool:
        """Whether counting them would wait for a device."""
        return not self.count.is_cpu

    def __len__(self) -> int:
        """Waits for the device."""
        return int(self.count)

    def pixels(self, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Video, row and column of every pixel, (N*side*side,) int64; waits for the device."""
        if side not in self._pixels:
            _, h, w = self.chosen.shape
            numbers = self.numbers[: len(self)].long().view(-1, 1, 1)
            inside = torch.arange(side, device=numbers.device)
            place = numbers % (h * w)
            y = place // w * side + inside.view(1, -1, 1)
            x = place % w * side + inside
            video, y, x = torch.broadcast_tensors(numbers // (h * w), y, x)
            self._pixels[side] = video.flatten(), y.flatten(), x.flatten()
        return self._pixels[side]

    def mask(self, side: int) -> Tensor:
        """(B, 1, h*side, w*side, 1) bool: pixels of the cells."""
        mask = self.chosen.repeat_interleave(side, 1).repeat_interleave(side, 2)
        return mask[:, None, :, :, None]
