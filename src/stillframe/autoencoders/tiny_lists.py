"""Where pixels of active cells lie in maps that are seen as rows of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stillframe.autoencoders.activity import Cells
from stillframe.autoencoders.tiny_program import BORDER, MapShape, Product

__all__ = ["Lists"]


class Lists:
    """The places of some cells' pixels, found once for all layers.

    Args:
        cells: the active ones.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._known: dict[object, Tensor] = {}

    def _once(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def seen(self, shape: MapShape, product: Product) -> Tensor:
        """Where runs begin, (groups of frames * pixels * runs)."""
        layout = shape.scale, shape.past, shape.phases
        key = ("seen", layout, product.stride, product.pool, product.runs)

        def make() -> Tensor:
            pixels = self._cells.pixels(shape.scale, BORDER)
            pixels = pixels[:, :: product.stride, :: product.stride]
            frame, across = self._sizes(shape.scale)
            runs = [run.phase * frame + run.down * across + run.right for run in product.runs]
            first = self._groups(shape, shape.phases // product.pool, product.pool)
            return _sums(first, pixels.flatten(), pixels.new_tensor(runs)).flatten()

        return self._once(key, make)

    def written(
        self, shape: MapShape, groups: int, grow: int, corner: tuple[int, int] | None
    ) -> Tensor:
        """Where rows go, (groups of frames * pixels * grow)."""
        key = ("written", shape.scale, shape.past, groups, grow, corner)

        def make() -> Tensor:
            pixels = self._cells.pixels(shape.scale, BORDER)
            if corner is not None:
                pixels = pixels[:, corner[0] :: 2, corner[1] :: 2]
            within = self._within(shape, grow)
            return _sums(self._groups(shape, groups, grow), pixels.flatten(), within).flatten()

        return self._once(key, make)

    def seen_by_tiles(self, shape: MapShape, product: Product) -> Tensor:
        """The 4x4 pixels that tiles see, (16, groups of frames * tiles, frames seen)."""
        phases = product.seen_phases
        key = ("tiles", shape.scale, shape.past, shape.phases, *phases)

        def make() -> Tensor:
            corners = self._cells.tiles(shape.scale, BORDER).corners
            frame, across = self._sizes(shape.scale)
            lines = torch.arange(-1, 3, device=corners.device)
            square = (lines.unsqueeze(1) * across + lines).view(-1, 1, 1)
            tiles = self._groups(shape, shape.phases, 1).unsqueeze(1) + corners
            before = corners.new_tensor([phase * frame for phase in phases])
            return square + tiles.view(-1, 1) + before

        return self._once(key, make)

    def written_by_tiles(self, shape: MapShape, groups: int, grow: int) -> Tensor:
        """Where their pixels go, (4, groups of frames * tiles, grow); 0, a place in the border, for
        those that are not active."""
        key = ("written by tiles", shape.scale, shape.past, groups, grow)

        def make() -> Tensor:
            pixels = self._cells.tiles(shape.scale, BORDER).pixels.unsqueeze(1)
            places = pixels + self._groups(shape, groups, grow).unsqueeze(1)
            places = places.where(pixels >= 0, -(2**62)).flatten(1).unsqueeze(2)
            return (places + self._within(shape, grow)).clamp(min=0)

        return self._once(key, make)

    def count(self, shape: MapShape) -> int:
        """Active pixels of all frames."""
        return shape.phases * len(self._cells) * shape.scale**2

    def listed_by_tiles(self, shape: MapShape) -> Tensor:
        """The same in a list of all active pixels, frame by frame: (4, frames * tiles, 1); behind
        its end for those that are not active."""
        numbers = self._cells.tiles(shape.scale, BORDER).numbers.unsqueeze(1)
        count = self.count(shape)
        first = torch.arange(shape.phases, device=numbers.device) * (count // shape.phases)
        listed = numbers + first.unsqueeze(1)
        return listed.where(numbers >= 0, count).flatten(1).unsqueeze(2)

    def _groups(self, shape: MapShape, groups: int, size: int) -> Tensor:
        frames = torch.arange(groups, device=self._cells.numbers.device) * size + shape.past
        return frames * self._sizes(shape.scale)[0]

    def _within(self, shape: MapShape, grow: int) -> Tensor:
        frames = torch.arange(grow, device=self._cells.numbers.device)
        return frames * self._sizes(shape.scale)[0]

    def _sizes(self, scale: int) -> tuple[int, int]:
        """Pixels of a frame of all videos, and of a line."""
        batch, h, w = self._cells.shape
        across = w * scale + 2 * BORDER
        return batch * (h * scale + 2 * BORDER) * across, across


def _sums(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Every sum of one each, the last changing fastest."""
    return first.view(-1, 1, 1) + second.view(-1, 1) + third
