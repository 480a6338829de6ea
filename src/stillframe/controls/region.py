"""Regions of the picture that are always or never recomputed, or alone are edited.

What codecs call a region of interest. Where a patch lies half in a region, it is recomputed when in
doubt: "always" and "only" take every patch that the region touches, "never" only those wholly
inside. The same holds for the pixel frames of a latent frame, where the region moves. Knows shapes
and the token grid, not files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    Demands,
    RunningControl,
    SourceFacts,
    StreamFacts,
    register,
)
from stillframe.controls.given import Given
from stillframe.controls.mask_video import MaskVideo
from stillframe.controls.shapes import Box, Painting, cell_edges
from stillframe.methods import Method
from stillframe.options import Option
from stillframe.tokens.grid import Grid

__all__ = ["MODES", "Region", "RunningRegion"]

#: What `Region.mode` may be.
MODES = ("always", "never", "only")

_ROUNDING = 1e-6


@register("roi")
@dataclass(frozen=True)
class Region(Control):
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

    summary = "a region of interest that is always, never or alone recomputed"
    options: ClassVar = {
        "roi": Option(
            "str",
            "A region: in shares of the picture, in pixels of the source, or what is white in "
            "an image or a video.", metavar="X,Y,W,H|FILE", group="What is recomputed",
        ),
        "roi_mode": Option(
            "str", "Recompute the region always or never, or edit only there.", default="always",
            choices=("always", "never", "only"), group="What is recomputed",
        ),
        "roi_invert": Option(
            "bool", "Mean everything but the region.", default=False, group="What is recomputed",
        ),
    }  # fmt: skip
    unused: ClassVar = {"roi": None}
    order = 50

    shape: Box | Painting | MaskVideo
    mode: str = "always"
    invert: bool = False
    extent: tuple[float, float] = (1.0, 1.0)
    skips: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"a region's mode is 'always', 'never' or 'only', got {self.mode!r}")

    @classmethod
    def from_options(cls, given: Given) -> Region | None:
        text = given["roi"]
        if text is None:
            return None
        shape = _box(text, given.named("roi")) or given.reading("roi").region(text)
        return cls(shape, given["roi_mode"] or "always", bool(given["roi_invert"]))

    @property
    def prunes(self) -> bool:
        """Whether there are places that are left uncomputed because of it."""
        return self.mode == "never" or (self.mode == "only" and self.skips)

    def check(self, method: Method, controls: Controls) -> None:
        if self.prunes and not method.prunes:
            never = self.mode == "never"
            raise ValueError(
                f"method {method.name!r} computes everything: it cannot have a region "
                f"{'that is never recomputed' if never else 'that alone is edited'}"
            )

    def fitted(self, source: SourceFacts) -> Region:
        shape = self.shape
        if isinstance(shape, Box):
            shape = shape.in_shares(source.width, source.height)
        elif isinstance(shape, MaskVideo) and source.timeline is not None:
            shape = shape.fitted(source.timeline)
        return replace(self, shape=shape, extent=source.extent)

    @property
    def unpruned(self) -> Region | None:
        """Where alone edits show; nothing is left uncomputed for it."""
        return replace(self, skips=False) if self.mode == "only" else None

    def start(self, facts: StreamFacts) -> RunningRegion:
        return RunningRegion(self)

    def places(self, grid: Grid, latent: int = 0) -> Tensor:
        """The patches that are meant in a latent frame, (h, w) bool.

        Raises:
            ValueError: the box is in pixels, of a source whose size was not given.
        """
        shape = self.shape
        if not isinstance(shape, MaskVideo):
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


def _box(text: str, name: str) -> Box | None:
    """Four numbers as a box; None if it is something else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if len(numbers) != 4:
        raise ValueError(f"{name} is x,y,width,height or a file, got {len(numbers)} numbers")
    return Box(*numbers)


class RunningRegion(RunningControl[Region]):
    """The region of one stream, block after block."""

    def __init__(self, control: Region) -> None:
        super().__init__(control)
        self._latent = 0
        self._numbers: list[int] | None = None
        self._frame = self._places = torch.empty(0)

    def begin(self, block: ControlledBlock) -> None:
        frames = []
        for latent in range(self._latent, self._latent + block.grid.frames):
            shape = self.control.shape
            numbers = shape.numbers(latent) if isinstance(shape, MaskVideo) else [0]
            # most frames have the region of the one before
            if numbers != self._numbers:
                self._numbers = numbers
                self._frame = self.control.places(block.grid, latent).to(block.tokens.device)
            frames.append(self._frame)
        self._places = torch.stack(frames)
        self._latent += block.grid.frames

    @property
    def _barred(self) -> Tensor | None:
        """What is not recomputed in this block unless it is whole, (S, h, w) bool."""
        if not self.control.prunes:
            return None
        # a whole block computes what lies around an edit as well. Later ones attend to that: keys
        # and values of the source itself would pull the edit back to how the source looks
        return self._places if self.control.mode == "never" else ~self._places

    def demands(self, block: ControlledBlock) -> Demands | None:
        if self._barred is not None:
            return block.no_demands()._replace(barred=self._barred)
        if self.control.mode == "always":
            return block.no_demands()._replace(forced=self._places)
        return None

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        if self._barred is not None:
            return keep & ~self._barred
        return keep | self._places if self.control.mode == "always" else keep

    @property
    def looks_at_latents(self) -> bool:
        # what lies around it is decoded from the source
        return self.control.mode == "only"

    def shows_source(self, block: ControlledBlock) -> Tensor | None:
        return ~self._places if self.control.mode == "only" else None

    def report(self) -> dict[str, Any]:
        box = self.control.shape
        shares = [box.left, box.top, box.width, box.height] if isinstance(box, Box) else None
        return {"roi": {"box": shares, "mode": self.control.mode, "invert": self.control.invert}}
