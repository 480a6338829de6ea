"""Attention recovery: what stands in for the keys and values of pruned tokens.

Self-attention is the only operation in which tokens see each other, so if its output at the kept
tokens is what it would have been with the whole sequence, everything after it follows. A recovery
is one file in this package: a subclass of `Recovery` under the `register` decorator. One object
serves one stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.cache import CacheShape
from stillframe.registry import Registry
from stillframe.tokens.grid import Plan
from stillframe.tokens.source import SourceBlock

__all__ = ["Recovery", "RecoverySetup", "find_recovery", "recoveries", "register"]


@dataclass(frozen=True)
class RecoverySetup:
    """What a recovery is built from.

    Attributes:
        shape: sizes of the stream's cache.
        steps: denoising passes a block (the context pass not counted).
        device, dtype: of keys and values.
        tolerance: largest distance between source patches that count as the same (`Method.match`).
        trim: see `change.patch_distance`.
        store: of keys and values that are held beyond the cache: ``dtype``, or ``settings.FP8``.
    """

    shape: CacheShape
    steps: int
    device: torch.device
    dtype: torch.dtype
    tolerance: float
    trim: float
    store: torch.dtype


class Recovery(ABC):
    """Fills in for pruned tokens. Subclasses override `place`, and what else they need.

    Class attributes:
        name: what ``--recovery`` takes.
        summary: one line for listings.
        complete: whether pruned tokens have keys and values at all.
        compares: whether it compares source patches, in whatever units the method does.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    complete: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    def __init__(self, setup: RecoverySetup) -> None:
        self.setup = setup

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held beyond the cache."""
        return 0

    def observe(self, source: SourceBlock, plan: Plan) -> None:  # noqa: B027
        """Look at the block's source before it is denoised; not called for skipped blocks."""

    def begin_block(self, block: BlockAttention) -> None:  # noqa: B027
        """Once a block, after positions are known: fill what holds for all its passes."""

    @abstractmethod
    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        """Make the block's rows of the cache ready for attention.

        Args:
            block: the block; its ``write_own`` and ``write`` put keys and values.
            step: denoising pass, from 0.
            layer: transformer layer.
            key, value: of the kept tokens, (B, K, heads, head_dim), keys before rotation.
        """


_REGISTRY: Registry[Recovery] = Registry("recovery")

#: Class decorator: makes a recovery known under a name.
register = _REGISTRY.register

#: All registered recoveries by name.
recoveries = _REGISTRY.all

#: The recovery of a name; ValueError if there is none.
find_recovery = _REGISTRY.find
