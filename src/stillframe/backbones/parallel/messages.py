"""What the process that leads tells the others.

Streams and prompts have numbers. What a stream decided about a block travels as it was decided, so
that processes cannot come to different ends: masks, where content moved from, which row stands in
for which.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.attention.cache import CacheShape
from stillframe.attention.reuse import Reuse
from stillframe.backbones.base import BlockInputs
from stillframe.kernels.shared import Workplace

__all__ = [
    "Begin",
    "Commit",
    "End",
    "Fuse",
    "Mask",
    "Open",
    "Prompt",
    "Rewind",
    "Run",
    "RunFused",
    "Skip",
    "Stop",
    "StoredRows",
]


class Prompt(NamedTuple):
    """A prompt: embeddings (B, L, text_dim)."""

    number: int
    embeds: Tensor


class Open(NamedTuple):
    """A stream; the cache is that of one process's heads, ``captures`` see `Workplace`."""

    number: int
    shape: CacheShape
    dtype: torch.dtype
    packed: bool
    sink_average: float | None
    position_limit: int
    context_sink: bool
    captures: bool


class Mask(NamedTuple):
    """A block's plan, see `Plan`; ``complete`` as its recovery is."""

    keep: Tensor
    origin: Tensor | None
    complete: bool


class StoredRows(NamedTuple):
    """A part of a buffer that every process has: of the cache, or of the recovery's store."""

    of_cache: bool
    name: Hashable
    size: tuple[int, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, x: Tensor, cache: Workplace, store: Workplace) -> StoredRows | None:
        """Where a tensor lies; None if it is in neither of the two."""
        for place in (cache, store):
            found = place.buffer_of(x)
            if found is not None:
                offset = int(x.storage_offset())
                return cls(place is cache, *found, tuple(x.shape), x.stride(), offset)
        return None

    def at(self, cache: Workplace, store: Workplace, device: torch.device) -> Tensor:
        """The same part of a process's own buffer."""
        place = cache if self.of_cache else store
        buffer = place.zeros(self.name, self.size, device, self.dtype)
        return buffer.as_strided(self.shape, self.stride, self.offset)


class Begin(NamedTuple):
    """A block begins.

    Attributes:
        number: of the stream.
        mask: its plan.
        store: counts the recoveries that the stream has had: each has a store of its own.
        keys, values: the bank of the reuse.
        reuse: without its bank.
    """

    number: int
    mask: Mask
    store: int
    keys: StoredRows
    values: StoredRows
    reuse: Reuse


class Run(NamedTuple):
    """A pass over the block's computed tokens, of which everybody gets a slice.

    Attributes:
        number: of the stream.
        step: of the pass; None: the context pass.
        prompt: its number.
        timestep: (B,) float.
        size, dtype: of a slice, (B, K / processes, P).
    """

    number: int
    step: int | None
    prompt: int
    timestep: Tensor
    size: tuple[int, ...]
    dtype: torch.dtype


class Fuse(NamedTuple):
    """The stream has fused passes from now on."""

    number: int
    fp8: bool


class RunFused(NamedTuple):
    """The denoising passes of a block, fused; everybody gets its slice through all of them."""

    block: Begin
    prompt: int
    inputs: BlockInputs


class Commit(NamedTuple):
    """The context pass of the block, fused."""

    number: int


class End(NamedTuple):
    """The block is over and committed."""

    number: int


class Skip(NamedTuple):
    """A block of which nothing is computed."""

    number: int
    mask: Mask


class Rewind(NamedTuple):
    """The latest blocks are committed anew."""

    number: int
    blocks: int


class Stop(NamedTuple):
    """There is nothing more to do."""
