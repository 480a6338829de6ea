"""No pruning: every token of every block is computed. What methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.change import SourceBlock
from stillframe.methods.base import Method, Selector, register

__all__ = ["Full"]


def _everything(source: SourceBlock) -> Tensor:
    grid = source.grid
    shape = (source.tokens.shape[0], grid.frames, grid.height, grid.width)
    return torch.ones(shape, dtype=torch.bool, device=source.tokens.device)


@register("full")
@dataclass(frozen=True)
class Full(Method):
    """The plain causal model."""

    summary = "compute every token (no pruning)"
    prunes = False

    recovery: str = "none"

    def selector(self) -> Selector:
        return _everything
