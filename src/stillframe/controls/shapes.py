"""Shapes in a picture, and which share of each cell of a grid they cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.untrusted.numbers import check_number

__all__ = ["Box", "MotionMap", "Painting", "cell_edges"]


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Attributes:
        left, top, width, height: in shares of the picture's sides, or pixels of the source if one
            of the four is above 1.

    Raises:
        ValueError: it is empty or begins outside of the picture.
    """

    left: float
    top: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not (self.left >= 0 and self.top >= 0 and self.width > 0 and self.height > 0):
            raise ValueError(
                "a box begins at 0 or more and has sides above 0, got "
                f"{self.left:g},{self.top:g},{self.width:g},{self.height:g}"
            )
        for value in (self.left, self.top, self.width, self.height):
            check_number("a number of a box", value, 0, 10**6)

    @property
    def in_pixels(self) -> bool:
        """Whether the numbers are pixels."""
        return max(self.left, self.top, self.width, self.height) > 1

    def in_shares(self, width: int, height: int) -> Box:
        """The same in shares of a picture of so many pixels.

        Raises:
            ValueError: it begins outside of the picture.
        """
        if not self.in_pixels:
            return self
        if self.left >= width or self.top >= height:
            raise ValueError(
                f"a box from {self.left:g},{self.top:g} on lies outside of {width}x{height} pixels"
            )
        return Box(
            self.left / width,
            self.top / height,
            min(self.width / width, 1.0),
            min(self.height / height, 1.0),
        )

    def cover(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Share of each cell that lies inside, (h, w); see `Painting.cover`."""
        y = _overlap(rows, rows.new_tensor([[self.top, self.top + self.height]]))
        x = _overlap(columns, columns.new_tensor([[self.left, self.left + self.width]]))
        return y @ x.T


@dataclass(frozen=True, eq=False)
class Painting:
    """A region of any shape.

    Attributes:
        inside: (H, W) bool, of any size; stretched over the picture.
        extent: shares of it, across and down, that the picture fills; the rest lies beyond.

    Raises:
        ValueError: it has no pixels, or is no such array.
    """

    inside: Tensor
    extent: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.inside.ndim != 2 or not self.inside.numel() or self.inside.dtype != torch.bool:
            raise ValueError(
                f"a painted region is bool (H, W), got {self.inside.dtype} "
                f"{tuple(self.inside.shape)}"
            )

    def cover(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Share of each cell that lies inside, (h, w).

        Args:
            rows, columns: (h, 2) and (w, 2) float64, where cells begin and end, in shares of the
                picture.
        """
        height, width = self.inside.shape
        y, x = (
            _overlap(rows, cell_edges(height, self.extent[1])),
            _overlap(columns, cell_edges(width, self.extent[0])),
        )
        return y @ self.inside.to(rows.device, rows.dtype) @ x.T


def cell_edges(count: int, extent: float) -> Tensor:
    """Where ``count`` cells begin and end, (count, 2); the picture ends at 1, they at 1/extent."""
    at = torch.arange(count + 1, dtype=torch.float64) / (count * extent)
    return torch.stack([at[:-1], at[1:].clamp(max=1.0)], 1)


def _overlap(cells: Tensor, parts: Tensor) -> Tensor:
    """Share of each cell (n, 2) that lies in each part (m, 2): (n, m)."""
    begin = torch.maximum(cells[:, None, 0], parts[None, :, 0])
    end = torch.minimum(cells[:, None, 1], parts[None, :, 1])
    return (end - begin).clamp(min=0) / (cells[:, 1:] - cells[:, :1])


class MotionMap(NamedTuple):
    """Blocks of a picture that its codec moved.

    Attributes:
        moved, unknown: (rows, columns) bool, cells of one size that cover the picture. Nothing is
            both.
        extent: shares of all cells, across and down, that the picture fills.
    """

    moved: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    extent: tuple[float, float]
