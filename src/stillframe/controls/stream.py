"""All controls of a stream as one object, and what they did.

A control stands between a method's mask and the engine's plan. In order of precedence: a whole
block is whole (`Gop`, `Cuts`); a region that is never recomputed is not, and neither is what lies
around one that alone is edited (`Region`); a place whose refresh is due is recomputed (`Refresh`),
as is a region that always is; everything else is up to the method, to the source's codec
(`CodecDetector`), to masks made before (`GivenMasks`), or to a `Rate`, out of whose budget all of
that comes. A `Guard` draws from what is left. All are causal, and nothing but a rate depends
on measured time, so a stream and a file come out the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillframe.controls.codec import CodecDetector, CodecTrack
from stillframe.controls.confine import Confinement, Decoder
from stillframe.controls.cuts import Cuts, GivenCuts
from stillframe.controls.gop import Gop
from stillframe.controls.guard import Guard, Watch
from stillframe.controls.mask_video import FrameClock
from stillframe.controls.masks import GivenMasks
from stillframe.controls.outcome import Happened, Order
from stillframe.controls.rate import Rate, RateController
from stillframe.controls.refresh import Refresh, Refreshing, refresh_phases
from stillframe.controls.region import Region, RegionTrack
from stillframe.controls.shapes import Box
from stillframe.methods import Method
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = ["Control", "StreamControl"]


@dataclass(frozen=True)
class Control:
    """What a stream is asked for beyond its method; nothing by default.

    Attributes:
        gop: whole blocks at regular distances.
        refresh: every place recomputed at least once in so many blocks.
        cuts: scene cuts make a block whole and forget the context.
        region: where to recompute always or never, or to edit at all.
        masks: keep masks to use instead of the method's.
        rate: speed or share to hold.
        guard: a random sample that tells how wrong reuse is.
        detector: what moved as the source's own codec has it, instead of or beside the method.
    """

    gop: Gop | None = None
    refresh: Refresh | None = None
    cuts: Cuts | GivenCuts | None = None
    region: Region | None = None
    masks: GivenMasks | None = None
    rate: Rate | None = None
    guard: Guard | None = None
    detector: CodecDetector | None = None

    def check(self, method: Method) -> None:
        """Raise a ValueError if a method cannot be controlled like this."""
        if not method.prunes and self._leaves_out is not None:
            raise ValueError(
                f"method {method.name!r} computes everything: it cannot have {self._leaves_out}"
            )
        if self.masks is not None and self.detector is not None:
            raise ValueError("given masks leave nothing to detect: give them or a detector")
        if self.rate is not None:
            self.rate.check(method)
            if self.masks is not None:
                raise ValueError("given masks leave nothing to hold a rate with: give one of them")
        if self.guard is not None:
            self._check_guard(self.guard, method)

    @property
    def _leaves_out(self) -> str | None:
        """What of it needs a method that prunes, None if nothing does."""
        if self.region is not None and self.region.prunes:
            never = self.region.mode == "never"
            return f"a region {'that is never recomputed' if never else 'that alone is edited'}"
        if self.masks is not None:
            return "masks"
        return None if self.detector is None else "another change detector"

    def _check_guard(self, guard: Guard, method: Method) -> None:
        if not method.prunes:
            raise ValueError(f"method {method.name!r} reuses nothing that a guard could watch")
        fixed = self.masks is not None or (self.rate is not None and self.rate.mode == "constant")
        if guard.target is not None and (fixed or method.score() is None):
            raise ValueError("a guard's target needs thresholds to move: masks come from elsewhere")

    def fitted(
        self,
        width: int,
        height: int,
        extent: tuple[float, float],
        clock: FrameClock | None = None,
    ) -> Control:
        """The same for a source of so many pixels, see `Region.fitted`, and of such frames."""
        region, cuts, detector = self.region, self.cuts, self.detector
        if region is not None:
            region = region.fitted(width, height, extent, clock)
        if detector is not None:
            detector = detector.fitted(extent, clock)
        if cuts is not None and clock is not None:
            cuts = cuts.fitted(clock)
        return replace(self, region=region, cuts=cuts, detector=detector)

    @property
    def unpruned(self) -> Control:
        """What of it concerns a stream that prunes nothing: cuts, and where alone edits show."""
        region = self.region
        shown = None if region is None or region.mode != "only" else replace(region, skips=False)
        return Control(cuts=self.cuts, region=shown)

    def start(self, method: Method | None = None, frames: int = 1) -> StreamControl:
        """A fresh state for one stream, with the method and pixel frames of a block for a rate."""
        return StreamControl(self, method, frames)

    def asked(self) -> dict[str, Any]:
        """What was asked for, as plain values; None for what was not."""
        region = self.region
        return {
            "gop": None if self.gop is None else self.gop.blocks,
            "refresh": None if self.refresh is None else self.refresh.blocks,
            "cuts": self.cuts is not None,
            "roi": None if region is None else _plain_region(region),
            "masks_in": self.masks is not None,
            "detector": None if self.detector is None else self.detector.kind,
        }


def _plain_region(region: Region) -> dict[str, Any]:
    box = region.shape
    shares = [box.left, box.top, box.width, box.height] if isinstance(box, Box) else None
    return {"box": shares, "mode": region.mode, "invert": region.invert}


class StreamControl:
    """The controls of one stream. For every block `begin`, `mask` if it is not whole, `end`.

    Attributes:
        rate: what holds the rate, None without one.
        watch: the guard's, None without one.
        motion: takes the maps of the source's codec, None without that detector.
    """

    def __init__(self, control: Control, method: Method | None = None, frames: int = 1) -> None:
        self.control = control
        self.rate: RateController | None = None
        if control.rate is not None:
            if method is None:
                raise ValueError("a rate is held by a method's thresholds, and there is none")
            self.rate = RateController(control.rate, method, frames)
        self.watch = None if control.guard is None else Watch(control.guard)
        self.motion = None if control.detector is None else CodecTrack(control.detector)
        self._detector = None if control.cuts is None else control.cuts.start()
        self._refreshing: Refreshing | None = None
        self._region: RegionTrack | None = None
        self._places: Tensor | None = None
        self._confinement = Confinement()
        self._cuts: list[int] = []
        self._forget_next = False
        self._block = self._since = self._whole_blocks = 0

    def begin(self, tokens: Tensor, grid: Grid) -> Order:
        """Look at the next block's source, (B, S, N, P), before anything is decided."""
        if self._block == 0:
            self._open(tokens, grid)
        if self._region is not None:
            self._places = self._region.block(self._block)
        if self.motion is not None:
            self.motion.begin(self._block, grid)
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
        if forget and self.rate is not None:
            self.rate.forget()
        return Order(whole, forget)

    def _open(self, tokens: Tensor, grid: Grid) -> None:
        control, device = self.control, tokens.device
        if control.region is not None:
            self._region = RegionTrack(control.region, grid, device)
        if control.refresh is not None:
            self._refreshing = Refreshing(control.refresh, grid, len(tokens), device)
        if control.masks is not None:
            control.masks.check_grid(grid)
        self._shape = (len(tokens), grid.frames, grid.height, grid.width)
        self._device = device

    def mask(
        self,
        select: Callable[[SourceBlock], Tensor],
        whole: bool,
        block: SourceBlock,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """The keep mask (B, S, h, w) of a block.

        Args:
            select: the method's, called unless there are masks.
            whole: whether everything is computed whatever this returns.
            block: the source.
            lengths: that kept tokens are padded to, see `RateController.choose`.
        """
        control = self.control
        if control.masks is not None:
            keep = control.masks.block(self._block)
        else:
            keep = select(block if self.watch is None else self.watch.scaled(block))
        if whole:
            if self.rate is not None:
                self.rate.skip(block)
            return torch.ones(self._shape, dtype=torch.bool, device=self._device)
        keep = keep.to(self._device).expand(self._shape)
        if self.motion is not None:
            keep = self.motion.mask(keep)
        barred = ~self._in_region(torch.ones_like(keep))
        if self.rate is not None:
            keep = self._within_budget(self.rate, keep, barred, block, lengths)
        keep = self._in_region(keep)
        if self._refreshing is not None:
            keep = self._refreshing.add(keep.flatten(2), self._spared).view(self._shape)
        return keep if self.watch is None else self.watch.sample(keep, barred)

    def _in_region(self, keep: Tensor) -> Tensor:
        """A keep mask with what the region demands, and without what it forbids."""
        region, spared = self.control.region, self._spared
        if spared is not None:
            return keep & ~spared.view(self._shape[1:])
        if region is None or self._places is None or region.mode != "always":
            return keep
        return keep | self._places

    @property
    def _spared(self) -> Tensor | None:
        """What is not recomputed in this block unless it is whole, (S, N) bool."""
        region = self.control.region
        if region is None or self._places is None or not region.prunes:
            return None
        # a whole block computes what lies around an edit as well. Later ones attend to that: keys
        # and values of the source itself would pull the edit back to how the source looks
        return (self._places if region.mode == "never" else ~self._places).flatten(1)

    def unedited(self, keep: Tensor) -> Tensor | None:
        """Where the result shows the source, bool as ``keep`` (B, S, h, w); None: nowhere."""
        region = self.control.region
        if region is None or region.mode != "only" or self._places is None:
            return None
        return ~self._places.expand_as(keep)

    def decode(self, decoder: Decoder, edited: Tensor, source: Tensor) -> Tensor:
        """Frames of the block, from latents (B, C, S, h, w) of the result and of the source."""
        region = self.control.region
        if region is None or region.mode != "only" or self._places is None:
            return decoder.decode(edited)
        return self._confinement.decode(decoder, edited, source, self._places)

    def _within_budget(
        self,
        rate: RateController,
        own: Tensor,
        barred: Tensor,
        block: SourceBlock,
        lengths: Sequence[int],
    ) -> Tensor:
        """The tokens that a rate chooses, region and refresh included."""
        _, _, height, width = self._shape
        forced = self._in_region(torch.zeros_like(own))
        refresh, due = self.control.refresh, torch.zeros_like(own)
        if refresh is not None:
            phases = refresh_phases(height, width, refresh.blocks).view(height, width)
            due |= (phases == self._block % refresh.blocks).to(own.device)
            due &= ~barred
        spare = 0 if self.watch is None else self.watch.guard.sampled(block.grid.tokens)
        chosen, score = rate.choose(block, own, forced | due, barred, spare, lengths)
        # what the refresh alone asks for is added, and counted, where all refreshes are
        return chosen & ~(due & ~forced & (score < 1))

    def end(self, keep: Tensor, whole: bool) -> None:
        """Take the mask (B, S, N) that the block was computed with."""
        if self._refreshing is not None:
            self._refreshing.note(keep, self._spared)
        if self.watch is not None:
            self.watch.end()
        self._since = 1 if whole else self._since + 1
        self._block += 1

    def see(self, result: Tensor, previous: Tensor | None) -> None:
        """Take a block's result (B, S*N, P), and that of the frame before it, (B, N, P)."""
        if self.watch is not None:
            self.watch.see(result, previous)

    def shows(self, staleness: Tensor) -> None:
        """Take the staleness of what the block shows, (B, S, h, w) in grey levels."""
        if self.rate is not None:
            self.rate.shows(staleness)

    def spent(self, share: float, seconds: float, captured: bool) -> None:
        """Take what the block that ended cost, see `RateController.note`."""
        if self.rate is not None:
            self.rate.note(share, seconds, captured)

    def use(self, method: Method) -> None:
        """Go on with another method."""
        if self.rate is not None:
            self.rate.use(method)

    def told(self) -> dict[str, Any]:
        """What was asked of a rate and of a guard, and how it went; waits for the device."""
        return {
            "rate": None if self.rate is None else self.rate.asked(),
            "guard": None if self.watch is None else self.watch.report(),
        }

    @property
    def happened(self) -> Happened:
        """What was done so far; waits for the device."""
        refreshing = self._refreshing
        return Happened(
            tuple(self._cuts),
            self._whole_blocks,
            0 if refreshing is None else refreshing.added,
            None if refreshing is None else refreshing.oldest,
            None if self.motion is None else self.motion.agreement,
        )
