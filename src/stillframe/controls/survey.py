"""The first of two passes: what would be computed at each level of change, from latents alone.

Runs the selection, not the model, for all levels at once: each has its own memory of what was
recomputed last. Holds two latent frames and one reference a level, whatever the video's length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.controls.base import Controls
from stillframe.controls.stream import ControlState
from stillframe.controls.twopass import LEVELS, Forecast
from stillframe.detection.pixels import Anchors
from stillframe.methods import Method, Score
from stillframe.tokens.grid import Grid
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock

__all__ = ["Survey"]


class Survey:
    """Collects a `Forecast`, block after block.

    Args:
        method: whose thresholds levels are in units of.
        controls: of the second pass; those count that make blocks whole.
    """

    def __init__(self, method: Method, controls: Controls | None = None) -> None:
        asked = (each for each in controls or () if each.makes_whole)
        self._orders = ControlState(Controls(*asked))
        self._method = method
        self._shares: list[tuple[float, ...]] = []
        self._previous: Tensor | None = None
        self._reference: Tensor | None = None
        self._score: Score | None = None
        self._anchors = Anchors()

    @torch.inference_mode()
    def add(self, tokens: Tensor, grid: Grid, pixels: Tensor | None = None) -> None:
        """Look at the next block's source, (1, S, N, P), and its ``SourceBlock.pixels``."""
        order = self._orders.begin(tokens, grid)
        first = self._reference is None or order.forget
        keep = torch.ones(len(LEVELS), grid.frames, grid.frame_tokens, dtype=torch.bool)
        keep = keep.to(tokens.device)
        if not first:
            above = self._above(tokens, grid, pixels)
            keep = keep if order.whole else above
        else:
            self._score = self._method.score()
        whole = first or order.whole
        self._shares.append(tuple(keep.flatten(1).double().mean(1).tolist()))
        self._orders.end(keep[:1], whole)
        before = tokens[:, -1] if self._reference is None else self._reference
        spread = len(LEVELS), -1, -1
        flat = tokens.flatten(1, 2).expand(spread)
        kept = restore(flat, before.expand(spread), predecessor_rows(keep))
        self._reference = kept[:, -grid.frame_tokens :]
        self._previous = tokens[:, -1].clone()
        if pixels is not None:
            shape = (len(LEVELS), grid.frames, grid.height, grid.width)
            self._anchors.advance(pixels.expand(len(LEVELS), -1, -1, -1, -1), keep.view(shape))

    def _above(self, tokens: Tensor, grid: Grid, pixels: Tensor | None) -> Tensor:
        """What changed by more than each level, (levels, S, N) bool."""
        assert self._previous is not None
        assert self._reference is not None
        assert self._score is not None
        count = len(LEVELS)
        block = SourceBlock(
            tokens.expand(count, -1, -1, -1),
            self._previous.expand(count, -1, -1),
            self._reference,
            grid,
            None if pixels is None else pixels.expand(count, -1, -1, -1, -1),
            self._anchors.pixels,
        )
        levels = torch.tensor(LEVELS, device=tokens.device).view(-1, 1, 1)
        return self._score(block).flatten(2) >= levels

    def forecast(self) -> Forecast:
        """What was found.

        Raises:
            ValueError: no block was added.
        """
        return Forecast(tuple(self._shares))
