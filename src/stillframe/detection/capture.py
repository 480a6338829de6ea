"""Detectors of change as steps from memory to memory, so that CUDA graphs can be made of them.

A detector is a hundred small kernels; launching them takes longer than running them. A selector
offers what can be captured: its `state_tensors`, if a call depends on those and the block's latents
alone (`Stateful`), or a way of its own (`Capturable`). Where it offers neither, whatever it calls
among its attributes is looked at, so that a selector that wraps another keeps the other's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from stillframe.kernels.shared import CapturedStep, Step
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = ["Capturable", "Faster", "Stateful", "SteppedMask", "captured"]

#: Makes a step faster; as a graph, say.
Faster = Callable[[Step], Step]


@runtime_checkable
class Stateful(Protocol):
    """A selector that looks at a block's latents and remembers tensors, and no more than that.

    Selectors of equal methods decide alike: the graph of one serves the others.

    Attributes:
        state_tensors: what it remembers, in a fixed order; none before its first block. What is set
            has the shapes of what was got.
    """

    state_tensors: list[Tensor]

    def __call__(self, source: SourceBlock) -> Tensor: ...


@runtime_checkable
class Capturable(Protocol):
    """A detector that knows which of its steps to make faster."""

    def captured(self, faster: Faster) -> Any:
        """The same detector with its steps made faster."""


class SteppedMask:
    """A selector as a step, for one stream.

    Args:
        selector: fresh.
        faster: what is made of the step.
    """

    def __init__(self, selector: Stateful, faster: Faster) -> None:
        self._selector = selector
        self._step = faster(self._decide)
        self._memory: list[Tensor] | None = None
        self._grid: Grid | None = None

    def __call__(self, source: SourceBlock) -> Tensor:
        """Decide for one block: (B, S, h, w), as the selector does."""
        self._grid = source.grid
        before, after = source.previous.unsqueeze(1), source.reference.unsqueeze(1)
        given = torch.cat([before, source.tokens, after], 1)
        keep, self._memory = self._step(given, self._memory)
        return keep

    def _decide(self, given: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        assert self._grid is not None
        if memory is not None:
            self._selector.state_tensors = memory
        keep = self._selector(SourceBlock(given[:, 1:-1], given[:, 0], given[:, -1], self._grid))
        return keep, self._selector.state_tensors


def captured(selector: Any, faster: Faster = CapturedStep) -> Any:
    """A fresh selector with everything in it that can be captured made faster.

    What a selector calls, and keeps as an attribute or in a list of them, is replaced in it.
    """
    return _captured(selector, faster, set())


def _captured(part: Any, faster: Faster, seen: set[int]) -> Any:
    """`captured`, each object once: they may refer to each other in a circle."""
    if not _is_detector(part) or id(part) in seen:
        return part
    seen.add(id(part))
    if isinstance(part, Capturable):
        return part.captured(faster)
    if isinstance(part, Stateful):
        return SteppedMask(part, faster)
    for name, inner in list(getattr(part, "__dict__", {}).items()):
        if isinstance(inner, list):
            inner[:] = [_captured(one, faster, seen) for one in inner]
        elif _is_detector(inner):
            # frozen dataclasses, too
            object.__setattr__(part, name, _captured(inner, faster, seen))
    return part


def _is_detector(part: object) -> bool:
    """Whether it may be a selector or a score: an object of some class that can be called."""
    return callable(part) and type(part).__module__ != "builtins" and not isinstance(part, type)
