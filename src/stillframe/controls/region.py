"""Regions of the picture that are always or never recomputed, or alone are edited.

What codecs call a region of interest. Where a patch lies half in a region, it is recomputed when in
doubt: "always" and "only" take every patch that the region touches, "never" only those wholly
inside. The same holds for the pixel frames of a latent frame, where the region moves. Knows shapes
and the token grid, not files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.controls.mask_video import Film
from stillframe.tokens.grid import Grid
from stillframe.untrusted.numbers import check_number

__all__ = ["MODES", "Box", "Painting", "Region", "RegionTrack", "cell_edges"]

#: What `Region.mode` may be.
MODES = ("always", "never", "only")

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


@dataclass(frozen=True)
class Region:
    """A region and what is to be done there.

    Attributes:
        shape: where.
        mode: "always" recompute there or "never"; or edit there and "only" there: the rest shows
            what the autoencoder makes of the source. A whole block is whole all the same.
        invert: mean everything but the shape.
        extent: shares of the model's frames, across and down, that the picture fills; the rest is
            padding, by less than a patch.
        skips: with "only", whether the rest is left uncomputed as well as not shown.

    Raises:
        ValueError: for an unknown mode.
    """

    shape: Box | Painting | Film
    mode: str = "always"
    invert: bool = False
    extent: tuple[float, float] = (1.0, 1.0)
    skips: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"a region's mode is 'always', 'never' or 'only', got {self.mode!r}")

    @property
    def prunes(self) -> bool:
        """Whether there are places that are left uncomputed because of it."""
        return self.mode == "never" or (self.mode == "only" and self.skips)

    def fitted(
        self,
        width: int,
        height: int,
        extent: tuple[float, float],
        clock: Timeline | None = None,
    ) -> Region:
        """The same for a source of so many pixels, see ``extent``, and such frames."""
        shape = self.shape
        if isinstance(shape, Box):
            shape = shape.in_shares(width, height)
        elif isinstance(shape, Film) and clock is not None:
            shape = shape.fitted(clock)
        return replace(self, shape=shape, extent=extent)

    def places(self, grid: Grid, latent: int = 0) -> Tensor:
        """The patches that are meant in a latent frame, (h, w) bool.

        Raises:
            ValueError: the box is in pixels, of a source whose size was not given.
        """
        shape = self.shape
        if not isinstance(shape, Film):
            return self.meant(shape, grid)
        frames = [self.meant(Painting(shape.picture(i)), grid) for i in shape.numbers(latent)]
        return torch.stack(frames).all(0) if self.mode == "never" else torch.stack(frames).any(0)

    def meant(self, shape: Box | Painting, grid: Grid) -> Tensor:
        """The patches that would be meant if that were the shape, (h, w) bool."""
        if isinstance(shape, Box) and shape.in_pixels:
            raise ValueError("a box in pixels needs the size of the source: fit the region to it")
        columns = cell_edges(grid.width, self.extent[0])
        rows = cell_edges(grid.height, self.extent[1])
        inside = shape.cover(rows, columns)
        if self.invert:
            inside = 1 - inside
        return inside > 1 - _ROUNDING if self.mode == "never" else inside > _ROUNDING


class RegionTrack:
    """The region of one stream, block after block.

    Args:
        region: what is asked for.
        grid: of a block.
        device: of the masks.
    """

    def __init__(self, region: Region, grid: Grid, device: torch.device) -> None:
        self.region = region
        self._grid, self._device = grid, device
        self._numbers: list[int] | None = None
        self._places = torch.empty(0)

    def block(self, number: int) -> Tensor:
        """The places meant in a block, (S, h, w) bool."""
        grid = self._grid
        first = number * grid.frames
        return torch.stack([self._frame(first + j) for j in range(grid.frames)])

    def _frame(self, latent: int) -> Tensor:
        shape = self.region.shape
        numbers = shape.numbers(latent) if isinstance(shape, Film) else [0]
        # most frames have the region of the one before
        if numbers != self._numbers:
            self._places = self.region.places(self._grid, latent).to(self._device)
            self._numbers = numbers
        return self._places
