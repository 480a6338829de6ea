"""The controls of one stream at work: asked in their order, before and after each mask.

Order of precedence: a whole block is whole. Of other blocks, each control changes the mask of those
before it, see `Control.order`: masks made before or the method's, then the source's codec, then a
rate, whose budget counts what regions and refreshes demand; then regions, which demand or forbid,
a refresh, and a guard's sample of what is left out. All are causal, and nothing but a rate depends
on measured time, so a stream and a file come out the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    Order,
    RunningControl,
    StreamFacts,
    control_kinds,
)
from stillframe.controls.confine import Confinement, Decoder
from stillframe.controls.shapes import MotionMap
from stillframe.controls.trace import Timing
from stillframe.methods import Method
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = ["ControlState"]

_R = TypeVar("_R", bound=RunningControl[Any])
_FACTS = StreamFacts()


class ControlState:
    """The controls of one stream. For every block `begin`, `mask` unless it is a first one, `end`.

    Args:
        controls: what is asked for.
        facts: of the stream.
        previous: of the stream so far, if other controls were changed while it ran; what did not
            change goes on as it was.

    Attributes:
        controls: what is asked for.
        whole_blocks: blocks that controls have made whole.
    """

    def __init__(
        self,
        controls: Controls,
        facts: StreamFacts = _FACTS,
        previous: ControlState | None = None,
    ) -> None:
        self.controls = controls
        self.whole_blocks: int = 0 if previous is None else previous.whole_blocks
        self._confinement: Confinement | None = None if previous is None else previous._confinement
        before = {} if previous is None else {each.control.name: each for each in previous}
        fresh = [control.start(facts) for control in controls]
        self._running: list[RunningControl[Any]] = [
            each.adopt(before[each.control.name]) if each.control.name in before else each
            for each in fresh
        ]
        self._block: ControlledBlock | None = None

    def __iter__(self) -> Iterator[RunningControl[Any]]:
        return iter(self._running)

    def find(self, kind: type[_R]) -> _R | None:
        """The running control of a class, None if there is none."""
        return next((each for each in self if isinstance(each, kind)), None)

    @property
    def looks_at_latents(self) -> bool:
        """Whether any of them needs all of the source's latents."""
        return any(each.looks_at_latents for each in self)

    def begin(self, tokens: Tensor, grid: Grid) -> Order:
        """Look at the next block's source, (B, S, N, P), before anything is decided."""
        block = self._block = ControlledBlock(tokens, grid, self._running)
        orders = [order for each in self if (order := each.begin(block)) is not None]
        forget = any(order.forget for order in orders)
        block.order = Order(forget or any(order.whole for order in orders), forget)
        self.whole_blocks += block.order.whole
        return block.order

    @property
    def block(self) -> ControlledBlock:
        """The block that is being made; a stream has begun one."""
        assert self._block is not None
        return self._block

    def mask(
        self,
        select: Callable[[SourceBlock], Tensor],
        whole: bool,
        source: SourceBlock,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """The keep mask (B, S, h, w) of a block.

        Args:
            select: the method's, called unless a control has masks of its own.
            whole: whether everything is computed whatever this returns.
            source: of the block.
            lengths: see `ControlledBlock.lengths`.
        """
        block = self.block
        block.source, block.lengths = source, lengths
        own = (each.select(block) for each in self)
        keep = next((mask for mask in own if mask is not None), None)
        if keep is None:
            for each in self:
                source = each.view(source)
            keep = select(source)
        device = block.tokens.device
        if whole:
            for each in self:
                each.skip(block)
            return torch.ones(block.shape, dtype=torch.bool, device=device)
        keep = keep.to(device).expand(block.shape)
        for each in self:
            keep = each.mask(block, keep)
        if block.source.motion is not None and not any(each.control.strict for each in self):
            keep = block.source.motion.complete(keep, block.demands.barred)
        return keep

    def result(self, result: Tensor, previous: Tensor | None) -> None:
        """Take a block's result (B, S*N, P), and that of the frame before it, (B, N, P)."""
        for each in self:
            each.result(result, previous)

    def _shows_source(self) -> Tensor | None:
        """Where the result shows the source, (S, h, w) bool; None: nowhere."""
        found = [x for each in self if (x := each.shows_source(self.block)) is not None]
        return torch.stack(found).any(0) if found else None

    def unedited(self, keep: Tensor) -> Tensor | None:
        """Where the result shows the source, bool as ``keep`` (B, S, h, w); None: nowhere."""
        shown = self._shows_source()
        return None if shown is None else shown.expand_as(keep)

    def decode(
        self, decoder: Decoder, edited: Tensor, source: Tensor, changed: Tensor | None = None
    ) -> Tensor:
        """Frames of the block, from latents (B, C, S, h, w) of the result and of the source.

        ``changed`` is what of the result is needed, see ``StreamingAutoencoder.decode``.
        """
        shown = self._shows_source()
        if shown is None:
            self._confinement = None
            return decoder.decode(edited, changed)
        if self._confinement is None:
            self._confinement = Confinement()
        return self._confinement.decode(decoder, edited, source, ~shown)

    def end(self, keep: Tensor, whole: bool, timing: Timing | None = None) -> None:
        """The block is done.

        Args:
            keep: (B, S, N) bool, what was computed.
            whole: whether that was all.
            timing: what it took, where somebody measures.
        """
        block = self.block
        block.keep, block.whole, block.timing = keep, whole, timing
        for each in self:
            each.end(block)
        # its source is not to be kept in memory until the next one
        self._block = None

    def frame(self, motion: MotionMap | None) -> None:
        """Take what the source's codec says of the next frame that is pushed, None if nothing."""
        for each in self:
            each.frame(motion)

    def outside(self, seconds: float) -> None:
        """Take time that was spent outside of the stream on the block that is being made."""
        for each in self:
            each.outside(seconds)

    def use(self, method: Method) -> None:
        """Go on with another method."""
        for each in self:
            each.use(method)

    def report(self) -> dict[str, Any]:
        """What was asked for and what was done, as plain values; waits for the device."""
        kinds: list[type[Control]] = list(control_kinds().values())
        found = {name: value for kind in kinds for name, value in kind.unused.items()}
        found["whole_blocks"] = self.whole_blocks
        for each in self:
            found |= each.report()
        return found

    def telemetry(self) -> dict[str, dict[str, Any]]:
        """How controls do that have something to tell, by name; call it once after every block."""
        return {each.control.name: t for each in self if (t := each.telemetry()) is not None}

    def warnings(self) -> list[str]:
        """Sentences on what went wrong."""
        return [sentence for each in self for sentence in each.warnings()]
