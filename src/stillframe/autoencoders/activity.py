"""Which cells an autoencoder computes, from which ones changed.

A cell is a latent pixel and what lies under it at every resolution: a square of s x s pixels at a
level that is s times finer. One set of active cells serves all layers of a latent frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Cells", "Tiles", "active"]

#: Cells by which activity reaches beyond what changed. With 1 the bundled autoencoder is well
#: within two grey levels of coding everything (`python -m benchmarks.coding_error`), with 0 not.
_REACH = 1


def active(changed: Tensor) -> Tensor:
    """Cells to compute: those that changed and one around them in all eight directions.

    Args:
        changed: (..., h, w) bool, a set of cells a latent frame and video.

    Returns:
        the same shape, bool.
    """
    h, w = changed.shape[-2:]
    grown = F.max_pool2d(changed.reshape(-1, 1, h, w).float(), 2 * _REACH + 1, 1, _REACH)
    return (grown > 0).view(changed.shape)


class Tiles(NamedTuple):
    """Squares of 2x2 pixels in which all pixels of active cells lie, each in one of them.

    Attributes:
        corners: (M,) int64, their first pixels; pixels count as in `Cells.pixels`.
        pixels: (4, M) int64, row by row; -1 for those that are of no active cell.
        numbers: (4, M) int64, the same as places in `Cells.pixels`.
    """

    corners: Tensor
    pixels: Tensor
    numbers: Tensor


class Cells:
    """The active cells of one latent frame as lists, for devices that can wait for their length.

    Args:
        active: (B, h, w) bool.

    Attributes:
        shape: B, h, w.
        numbers: (N,) int64, active cells; cells count row by row, video after video.
    """

    def __init__(self, active: Tensor) -> None:
        self.shape = tuple(active.shape)
        self._active = active
        self.numbers = active.flatten().nonzero().squeeze(1)
        self._pixels: dict[tuple[int, int], Tensor] = {}
        self._tiles: dict[tuple[int, int], Tiles] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Videos, lines and columns of the cells, (N,) each."""
        _, h, w = self.shape
        return self.numbers // (h * w), self.numbers // w % h, self.numbers % w

    def pixels(self, scale: int, border: int = 0) -> Tensor:
        """Pixels of the cells at a level that is ``scale`` times finer.

        Args:
            border: pixels by which every picture of the level is wider on each of its sides.

        Returns:
            (N, scale, scale) int64; pixels count row by row, border included, video after video.
        """
        if (scale, border) not in self._pixels:
            _, h, w = self.shape
            height, width = h * scale + 2 * border, w * scale + 2 * border
            video, line, column = self.places
            inside = torch.arange(scale, device=self.numbers.device)
            square = inside.unsqueeze(1) * width + inside
            corner = (video * height + line * scale + border) * width + column * scale + border
            self._pixels[scale, border] = corner.view(-1, 1, 1) + square
        return self._pixels[scale, border]

    def tiles(self, scale: int, border: int) -> Tiles:
        """The active pixels of a level in squares of four.

        Where a cell is a pixel, squares begin at odd lines and columns, from -1 on: what changed
        are mostly patches of 2x2 cells, and with one cell around them those fill such squares.

        Args:
            scale, border: as `pixels` has them; 1 or even, and 1 or more.
        """
        if (scale, border) not in self._tiles:
            made = self._in_cells(scale, border) if scale > 1 else self._across_cells(border)
            self._tiles[scale, border] = made
        return self._tiles[scale, border]

    def _in_cells(self, scale: int, border: int) -> Tiles:
        pixels = self.pixels(scale, border)
        numbers = torch.arange(pixels.numel(), device=pixels.device).view(pixels.shape)

        def squares(x: Tensor) -> Tensor:
            parts = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
            return parts.permute(2, 4, 0, 1, 3).reshape(4, -1)

        places = squares(pixels)
        return Tiles(places[0], places, squares(numbers))

    def _across_cells(self, border: int) -> Tiles:
        _, h, w = self.shape
        grown = F.pad(self._active, (1, 1 - w % 2, 1, 1 - h % 2))  # from -1 on, even sides
        height, width = grown.shape[1:]
        counted = (grown.flatten().cumsum(0) - 1).view(grown.shape)
        numbers = torch.where(grown, counted, -1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        numbers = numbers.permute(2, 4, 0, 1, 3).reshape(4, -1)
        chosen = (numbers >= 0).any(0).nonzero().squeeze(1)
        numbers = numbers[:, chosen]
        video, line, column = (
            chosen // (height * width // 4),
            chosen // (width // 2) % (height // 2),
            chosen % (width // 2),
        )
        across = w + 2 * border
        first = (video * (h + 2 * border) + 2 * line - 1 + border) * across
        corners = first + 2 * column - 1 + border
        square = torch.tensor([0, 1, across, across + 1], device=chosen.device)
        pixels = torch.where(numbers >= 0, corners + square.unsqueeze(1), -1)
        return Tiles(corners, pixels, numbers)
