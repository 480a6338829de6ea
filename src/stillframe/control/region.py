"""Regions of the picture that are always or never recomputed, whatever moves there.

What codecs call a region of interest. Where a patch lies half in a region, it is recomputed when in
doubt: "always" takes every patch that the region touches, "never" only those wholly inside. Knows
shapes and the token grid, not files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillframe.grid import Grid

__all__ = ["MODES", "Box", "Painting", "Region"]

#: What `Region.mode` may be.
MODES = ("always", "never")

_ROUNDING = 1e-6


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

    Raises:
        ValueError: it has no pixels, or is no such array.
    """

    inside: Tensor

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
        y, x = _overlap(rows, _edges(height, 1.0)), _overlap(columns, _edges(width, 1.0))
        return y @ self.inside.to(rows.device, rows.dtype) @ x.T


def _edges(count: int, extent: float) -> Tensor:
    """Where ``count`` cells begin and end, (count, 2); the picture ends at 1, they at 1/extent."""
    at = torch.arange(count + 1, dtype=torch.float64) / (count * extent)
    return torch.stack([at[:-1], at[1:].clamp(max=1.0)], 1)


def _overlap(cells: Tensor, parts: Tensor) -> Tensor:
    """Share of each cell (n, 2) that lies in each part (m, 2): (n, m)."""
    begin = torch.maximum(cells[:, None, 0], parts[None, :, 0])
    end = torch.minimum(cells[:, None, 1], parts[None, :, 1])
    return (end - begin).clamp(min=0) / (cells[:, 1:] - cells[:, :1])


@dataclass(frozen=True)
class Region:
    """A region and what is to be done there.

    Attributes:
        shape: where.
        mode: "always" recompute there or "never"; a whole block is whole all the same.
        invert: mean everything but the shape.
        extent: shares of the model's frames, across and down, that the picture fills; the rest is
            padding, by less than a patch.

    Raises:
        ValueError: for an unknown mode.
    """

    shape: Box | Painting
    mode: str = "always"
    invert: bool = False
    extent: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"a region's mode is 'always' or 'never', got {self.mode!r}")

    def fitted(self, width: int, height: int, extent: tuple[float, float]) -> Region:
        """The same for a source of so many pixels, see ``extent``."""
        shape = self.shape
        if isinstance(shape, Box):
            shape = shape.in_shares(width, height)
        return replace(self, shape=shape, extent=extent)

    def places(self, grid: Grid) -> Tensor:
        """The patches that are meant, (h, w) bool.

        Raises:
            ValueError: the box is in pixels, of a source whose size was not given.
        """
        if isinstance(self.shape, Box) and self.shape.in_pixels:
            raise ValueError("a box in pixels needs the size of the source: fit the region to it")
        columns, rows = _edges(grid.width, self.extent[0]), _edges(grid.height, self.extent[1])
        inside = self.shape.cover(rows, columns)
        if self.invert:
            inside = 1 - inside
        return inside > _ROUNDING if self.mode == "always" else inside > 1 - _ROUNDING
