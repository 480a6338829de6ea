"""Which cells an autoencoder computes, from which ones changed.

A cell is a latent pixel and what lies under it at every resolution: a square of s x s pixels at a
level that is s times finer. One set of active cells serves all layers of a latent frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Cells", "active"]

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
        self.numbers = active.flatten().nonzero().squeeze(1)
        self._pixels: dict[tuple[int, int], Tensor] = {}

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
