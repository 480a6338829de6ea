"""Attention recovery: what stands in for the keys and values of pruned tokens.

Self-attention is the only operation in which tokens see each other, so if its output at the kept
tokens is what it would have been with the whole sequence, everything after it follows. A recovery
copies nothing: it says which row stands in for which token, as a `Reuse`, and however passes are
run they read that. One is one file in this package: a subclass of `Recovery` under the `register`
decorator. One object serves one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.reuse import Reuse
from stillframe.kernels.shared import Memory
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
        trim: see `latents.patch_distance`.
        store: of keys and values that are kept beyond the cache: ``dtype``, or ``rows.FP8``.
        memory: of the stream, where its store lies.
    """

    shape: CacheShape
    steps: int
    device: torch.device
    dtype: torch.dtype
    tolerance: float
    trim: float
    store: torch.dtype
    memory: Memory = field(default_factory=Memory, compare=False)

    def zeros(self, name: str, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """A store of keys or values, which starts at 0 and is found as it was left.

        Streams that take turns share it, and with it the graphs of passes that use it. A tensor
        that a recovery makes itself works as well, but its graphs are its stream's.

        Args:
            name: of it.
            size: of it.
            dtype: None for that of keys and values.
        """
        return self.memory.zeros(name, size, self.device, dtype or self.dtype)


class Recovery:
    """Fills in for pruned tokens. Subclasses override `reuse`, and what else they need.

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
    def memory(self) -> Memory:
        """What the stream leaves where passes with this recovery are made."""
        return self.setup.memory

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values kept beyond the cache."""
        return 0

    def observe(self, source: SourceBlock, plan: Plan) -> None:
        """Look at the block's source before it is denoised; not called for skipped blocks."""

    def skip(self, plan: Plan) -> None:
        """Note that a block is skipped, nothing of it computed: its tokens may have moved."""

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        """Where keys and values come from in the denoising passes of a block, asked once a block.

        Unless overridden, pruned tokens take those of the last committed frame, where their
        content was in it.

        Args:
            plan: of the block; where it keeps everything, slots take their own whatever is said.
            cache: committed frames, whose `bank` may be taken from and not written to.
        """
        if plan.origin is None:
            return Reuse(plan.rows, cache.last_frame().expand(plan.keep.shape), cache.bank)
        return Reuse(plan.rows, cache.last_frame()[plan.traced], cache.bank, displaced=True)


_REGISTRY: Registry[Recovery] = Registry("recovery")

#: Class decorator: makes a recovery known under a name.
register = _REGISTRY.register

#: All registered recoveries by name.
recoveries = _REGISTRY.all

#: The recovery of a name; ValueError if there is none.
find_recovery = _REGISTRY.find
