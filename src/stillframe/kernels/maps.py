"""Maps: whole activations of a latent frame that stay in place, and lists of their cells.

A cell is a latent pixel and what lies under it: a square of s x s pixels in a map that is s times
finer. Kernels read and write maps at listed cells and leave the rest of them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CellList", "Map", "list_cells"]


@dataclass(frozen=True, eq=False)
class Map:
    """Frames with channels last and a border of zeros, so that kernels need not look for edges.

    Attributes:
        data: (past + T, B, H + 2, W + 2, C) contiguous, zero around each picture.
        past: whether the first frame is the one before those of the latent frame, 0 or 1.
    """

    data: Tensor
    past: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], past: int, like: Tensor) -> Map:
        """Zeros, of shape (T, B, H, W, C)."""
        frames, batch, height, width, channels = shape
        return cls(like.new_zeros(past + frames, batch, height + 2, width + 2, channels), past)

    @property
    def pixels(self) -> Tensor:
        """(T, B, H, W, C) of it, without border and past; a view."""
        return self.data[self.past :, :, 1:-1, 1:-1]

    @property
    def before(self) -> Tensor:
        """(B, H, W, C): the frame before; a view."""
        return self.data[0, :, 1:-1, 1:-1]


class CellList(NamedTuple):
    """Cells of B latent pictures that are to be computed.

    Attributes:
        batch, height, width: B, h, w.
        numbers: (B*h*w,) int32, first the listed cells, then anything; cells count row by row,
            video after video. None: all of them.
        length: (1,) int32 on the device, how many are listed. None: all.
    """

    batch: int
    height: int
    width: int
    numbers: Tensor | None = None
    length: Tensor | None = None

    @property
    def most(self) -> int:
        """Cells there are."""
        return self.batch * self.height * self.width

    def mask(self, side: int) -> Tensor | None:
        """(B, h*side, w*side) bool, their pixels in a map; None for all. Waits for the device."""
        if self.numbers is None or self.length is None:
            return None
        mask = torch.zeros(self.most, dtype=torch.bool, device=self.numbers.device)
        mask[self.numbers[: int(self.length)].long()] = True
        mask = mask.view(self.batch, self.height, self.width)
        return mask.repeat_interleave(side, 1).repeat_interleave(side, 2)


def list_cells(active: Tensor) -> list[CellList]:
    """A list a latent frame, without waiting for the device.

    Args:
        active: (B, S, h, w) bool.
    """
    batch, frames, height, width = active.shape
    flat = active.transpose(0, 1).flatten(1)
    cells = flat.shape[1]
    count = flat.cumsum(1, dtype=torch.int32)
    # those that are not active all go to a place beyond the list
    place = torch.where(flat, count - 1, cells).long()
    numbers = torch.zeros(frames, cells + 1, dtype=torch.int32, device=active.device)
    all_of_them = torch.arange(cells, dtype=torch.int32, device=active.device)
    numbers.scatter_(1, place, all_of_them.expand_as(place))
    return [CellList(batch, height, width, numbers[k], count[k, -1:]) for k in range(frames)]
