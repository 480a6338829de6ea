"""A detector of change as a step from memory to memory, so that a CUDA graph can be made of it.

A detector is a hundred small kernels; launching them takes longer than running them. It knows
detectors that look back at the frames before, not what they decide by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stillframe.detection.latents import lookbacks
from stillframe.detection.pixels import VisibleMask
from stillframe.kernels.graphs import CapturedStep
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = ["SteppedMask", "captured_mask"]

Selector = Callable[[SourceBlock], Tensor]


class SteppedMask:
    """A selector that looks back, for one stream.

    Args:
        selector: fresh; what it looks back at is in `change.lookbacks`.
        faster: what is made of the step; as it is by default.
    """

    def __init__(self, selector: Selector, faster: Callable[[Any], Any] = lambda step: step):
        self._selector, self._holders = selector, lookbacks(selector)
        self._step = faster(self._decide)
        self._memory: list[Tensor] | None = None
        self._grid: Grid | None = None

    def __call__(self, source: SourceBlock) -> Tensor:
        """Decide for one block, see `change.CausalMask`."""
        self._grid = source.grid
        before, after = source.previous.unsqueeze(1), source.reference.unsqueeze(1)
        given = torch.cat([before, source.tokens, after], 1)
        keep, self._memory = self._step(given, self._memory)
        return torch.as_tensor(keep)

    def _decide(self, given: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        assert self._grid is not None
        if memory is not None:
            # the order in which they were written down below
            remembering = [holder for holder in self._holders if holder.seen is not None]
            for holder, seen in zip(remembering, memory, strict=True):
                holder.seen = seen
        keep = self._selector(SourceBlock(given[:, 1:-1], given[:, 0], given[:, -1], self._grid))
        return keep, [holder.seen for holder in self._holders if holder.seen is not None]


def captured_mask(selector: Selector) -> Selector:
    """The same as a graph, if it is a detector that can be one."""
    if isinstance(selector, VisibleMask):
        selector.change.captured(CapturedStep)
        return selector
    return SteppedMask(selector, CapturedStep) if lookbacks(selector) else selector
