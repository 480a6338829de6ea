"""The buffers that a stream's graphs read and write, and what they say of a block.

They never move; a new block changes what is in them. Which slot takes what from where is written
here once a block, for all its passes, as the recovery and `BlockAttention` say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.kernels.rows import Displaced, Entries, Sources, Table

__all__ = ["Buffers"]


@dataclass
class Buffers:
    """One stream's, for blocks of S*N slots and patches of P numbers.

    Attributes:
        x0, noise, source: (S*N, P) float32 of the computed tokens, in order, padding last.
        sigma, timestep: (1,) of the pass.
        slots: (S*N,) int32 slot of each computed token.
        table: rotations of the slots.
        denoise, context: where keys and values come from in either kind of pass.
        denoise_displaced, context_displaced: of the slots that take entries of other places, which
            are overwritten, and those entries' copies; None where there are none in the block.
        entry: row of the recovery's bank that the pass starts at.
        zero: 0, where entries start at their first row.
        committed, stored: rows of the cache's values that the block's frames go to, and the rows
            of the block that go there.
    """

    x0: Tensor
    noise: Tensor
    source: Tensor
    sigma: Tensor
    timestep: Tensor
    slots: Tensor
    table: Table
    denoise: Sources
    context: Sources
    entry: Tensor
    zero: Tensor
    committed: Tensor
    stored: Tensor
    denoise_displaced: Displaced | None = None
    context_displaced: Displaced | None = None
    _displaced: dict[tuple[str, torch.dtype], Displaced] = field(default_factory=dict)

    @classmethod
    def like(cls, source: Tensor, shape: CacheShape) -> Buffers:
        """Fresh buffers for blocks like ``source`` (S*N, P), on its device."""
        grid, device = shape.grid, source.device
        tokens, half = grid.tokens, shape.head_dim // 2

        def numbers(*size: int) -> Tensor:
            return torch.zeros(size, device=device)

        def indices(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(size, -1, device=device, dtype=dtype)

        def sources() -> Sources:
            size = (grid.frames, grid.frame_tokens)
            return Sources(indices(*size), indices(*size), indices(*size))

        return cls(
            x0=numbers(*source.shape),
            noise=numbers(*source.shape),
            source=numbers(*source.shape),
            sigma=numbers(1),
            timestep=numbers(1),
            slots=torch.zeros(tokens, device=device, dtype=torch.int32),
            table=Table(numbers(tokens, half), numbers(tokens, half)),
            denoise=sources(),
            context=sources(),
            entry=torch.zeros((), device=device, dtype=torch.int64),
            zero=torch.zeros((), device=device, dtype=torch.int64),
            committed=indices(0, dtype=torch.int64),
            stored=indices(0, dtype=torch.int64),
        )

    def point(self, reuse: Reuse, context: Reuse, cache: KeyValueCache) -> None:
        """Say where each slot's key and value come from, in denoising and in the context pass.

        Args:
            reuse, context: of either kind of pass; batch of 1.
            cache: the stream's.
        """
        for buffer, given in ((self.denoise, reuse), (self.context, context)):
            buffer.new.copy_(given.new[0])
            buffer.old.copy_(given.old[0])
        if reuse.out is not None:
            self.denoise.out.copy_(reuse.out[0])
        self._point_commits(cache)
        self.denoise_displaced = self.context_displaced = None
        if reuse.displaced and reuse.out is not None:
            self.denoise_displaced = self._split("denoise", self.denoise, reuse.bank)
        if context.displaced:
            self.context_displaced = self._split("context", self.context, context.bank)

    def _split(self, kind: str, sources: Sources, bank: Bank) -> Displaced:
        """Give slots that take entries of other places to a kind of pass's own `Displaced`, which
        shares copies with the other kind's if banks are alike."""
        dtype, width = bank.keys.dtype, bank.keys.shape[4] * bank.keys.shape[5]
        if (kind, dtype) not in self._displaced:
            alike = [x.scratch for (_, other), x in self._displaced.items() if other == dtype]
            scratch = alike[0] if alike else self._scratch(width, dtype)
            self._displaced[kind, dtype] = Displaced.like(sources, scratch)
        displaced = self._displaced[kind, dtype]
        displaced.split(sources)
        return displaced

    def _scratch(self, width: int, dtype: torch.dtype) -> Entries:
        size, device = (self.denoise.old.numel(), width), self.zero.device
        keys = torch.zeros(size, device=device, dtype=dtype)
        return Entries(keys, torch.zeros_like(keys), self.zero)

    def _point_commits(self, cache: KeyValueCache) -> None:
        """Rows of the cache that the block's frames go to."""
        n, stored = cache.shape.grid.frame_tokens, cache.stored()
        place = torch.arange(n, device=self.slots.device)
        self.context.out.fill_(-1)
        for j, rows in stored:
            self.context.out[j] = place + rows.start
        committed = torch.cat([place + rows.start + cache.block_rows for _, rows in stored])
        from_rows = torch.cat([place + j * n for j, _ in stored])
        if len(committed) != len(self.committed):
            self.committed, self.stored = committed, from_rows
        else:
            self.committed.copy_(committed)
            self.stored.copy_(from_rows)
