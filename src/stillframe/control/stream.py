"""All controls of a stream as one object, and what they did.

A control stands between a method's mask and the engine's plan. In order of precedence: a whole
block is whole (`Gop`, `Cuts`); a region that is never recomputed is not (`Region`); a place whose
refresh is due is recomputed (`Refresh`), as is a region that always is; everything else is up to
the method, or to masks that were made before (`GivenMasks`). All are causal, and nothing depends on
measured time, so a stream and a file come out the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillframe.control.cuts import CutDetector, Cuts
from stillframe.control.gop import Gop
from stillframe.control.masks import GivenMasks
from stillframe.control.refresh import Refresh, Refreshing
from stillframe.control.region import Box, Region
from stillframe.grid import Grid
from stillframe.methods import Method

__all__ = ["Control", "Happened", "Order", "StreamControl"]


@dataclass(frozen=True)
class Control:
    """What a stream is asked for beyond its method; nothing by default.

    Attributes:
        gop: whole blocks at regular distances.
        refresh: every place recomputed at least once in so many blocks.
        cuts: scene cuts make a block whole and forget the context.
        region: where to recompute always, or never.
        masks: keep masks to use instead of the method's.
    """

    gop: Gop | None = None
    refresh: Refresh | None = None
    cuts: Cuts | None = None
    region: Region | None = None
    masks: GivenMasks | None = None

    def check(self, method: Method) -> None:
        """Raise a ValueError if a method cannot be controlled like this."""
        never = self.region is not None and self.region.mode == "never"
        if not method.prunes and (never or self.masks is not None):
            what = "a region that is never recomputed" if never else "masks"
            raise ValueError(f"method {method.name!r} computes everything: it cannot have {what}")

    def fitted(self, width: int, height: int, extent: tuple[float, float]) -> Control:
        """The same for a source of so many pixels, see `Region.fitted`."""
        region = None if self.region is None else self.region.fitted(width, height, extent)
        return replace(self, region=region)

    @property
    def unpruned(self) -> Control:
        """What of it concerns a stream in which nothing is pruned: the cuts."""
        return Control(cuts=self.cuts)

    def start(self) -> StreamControl:
        """A fresh state for one stream."""
        return StreamControl(self)

    def asked(self) -> dict[str, Any]:
        """What was asked for, as plain values; None for what was not."""
        region = self.region
        return {
            "gop": None if self.gop is None else self.gop.blocks,
            "refresh": None if self.refresh is None else self.refresh.blocks,
            "cuts": self.cuts is not None,
            "roi": None if region is None else _plain_region(region),
            "masks_in": self.masks is not None,
        }


def _plain_region(region: Region) -> dict[str, Any]:
    box = region.shape
    shares = [box.left, box.top, box.width, box.height] if isinstance(box, Box) else None
    return {"box": shares, "mode": region.mode, "invert": region.invert}


class Order(NamedTuple):
    """What becomes of a block.

    Attributes:
        whole: every token is computed.
        forget: the context is, too: the block is computed as a stream's first one.
    """

    whole: bool
    forget: bool


class Happened(NamedTuple):
    """What controls did to a stream.

    Attributes:
        cuts: latent frames, from 0, with which a scene begins.
        whole_blocks: blocks made whole: by the group of pictures, and by cuts.
        refreshed_tokens: tokens computed for the refresh alone.
        oldest: largest number of blocks that any place was not recomputed for, None without a
            refresh.
    """

    cuts: tuple[int, ...]
    whole_blocks: int
    refreshed_tokens: int
    oldest: int | None


class StreamControl:
    """The controls of one stream. For every block `begin`, `mask` if it is not whole, `end`."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self._detector = None if control.cuts is None else CutDetector(control.cuts)
        self._refreshing: Refreshing | None = None
        self._places: Tensor | None = None
        self._cuts: list[int] = []
        self._forget_next = False
        self._block = self._since = self._whole_blocks = 0

    def begin(self, tokens: Tensor, grid: Grid) -> Order:
        """Look at the next block's source, (B, S, N, P), before anything is decided."""
        if self._block == 0:
            self._open(tokens, grid)
        forget, self._forget_next = self._forget_next, False
        if self._detector is not None:
            found = self._detector(tokens)
            self._cuts += [self._block * grid.frames + j for j in found.begun]
            # a block that holds the end of a scene must not become the next one's context
            self._forget_next = found.last is not None and found.last > 0
            forget |= found.last is not None
        gop = self.control.gop
        whole = forget or (gop is not None and self._block > 0 and gop.due(self._since))
        self._whole_blocks += whole
        return Order(whole, forget)

    def _open(self, tokens: Tensor, grid: Grid) -> None:
        control, device = self.control, tokens.device
        spared = None
        if control.region is not None:
            self._places = control.region.places(grid).to(device)
            spared = self._places.flatten() if control.region.mode == "never" else None
        if control.refresh is not None:
            self._refreshing = Refreshing(control.refresh, grid, len(tokens), device, spared)
        if control.masks is not None:
            control.masks.check_grid(grid)
        self._shape = (len(tokens), grid.frames, grid.height, grid.width)
        self._device = device

    def mask(self, select: Callable[[], Tensor], whole: bool) -> Tensor:
        """The keep mask (B, S, h, w) of a block.

        Args:
            select: the method's, called unless there are masks.
            whole: whether everything is computed whatever this returns.
        """
        control = self.control
        keep = select() if control.masks is None else control.masks.block(self._block)
        if whole:
            return torch.ones(self._shape, dtype=torch.bool, device=self._device)
        keep = keep.to(self._device).expand(self._shape)
        if control.region is not None and self._places is not None:
            always = control.region.mode == "always"
            keep = keep | self._places if always else keep & ~self._places
        if self._refreshing is not None:
            keep = self._refreshing.add(keep.flatten(2)).view(self._shape)
        return keep

    def end(self, keep: Tensor, whole: bool) -> None:
        """Take the mask (B, S, N) that the block was computed with."""
        if self._refreshing is not None:
            self._refreshing.note(keep)
        self._since = 1 if whole else self._since + 1
        self._block += 1

    @property
    def happened(self) -> Happened:
        """What was done so far; waits for the device."""
        refreshing = self._refreshing
        return Happened(
            tuple(self._cuts),
            self._whole_blocks,
            0 if refreshing is None else refreshing.added,
            None if refreshing is None else refreshing.oldest,
        )
