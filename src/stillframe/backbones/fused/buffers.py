"""The buffers that graphs of passes read and write, and what they say of a block.

They never move; a new block, of this stream or another, changes what is in them. Which slot takes
what from where is written here once a block, for all its passes, as the recovery and
`BlockAttention` say.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillframe.attention.cache import CacheShape, KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.backbones.base import TextCache
from stillframe.kernels.rows import Displaced, Entries, Sources, Table

__all__ = ["Buffers", "Pointed"]


class Pointed(NamedTuple):
    """Buffers that depend on the kind of block.

    Attributes:
        denoise, context: of the slots that take entries of other places, which are overwritten, and
            those entries' copies, in either kind of pass; None where there are none in the block.
        committed, stored: rows of the cache's values that the block's frames go to, and the rows
            of the block that go there.
    """

    denoise: Displaced | None
    context: Displaced | None
    committed: Tensor
    stored: Tensor


@dataclass
class Buffers:
    """Those of streams that take turns, for blocks of S*N slots and patches of P numbers.

    Attributes:
        x0, noise, source: (S*N, P) float32 of the computed tokens, in order, padding last.
        sigma, level, timestep: (1,) of the pass: where its prediction is read, what its input is
            mixed at, what the model is told.
        slots: (S*N,) int32 slot of each computed token.
        table: rotations of the slots.
        denoise, context: where keys and values come from in either kind of pass.
        entry: row of the recovery's bank that the pass starts at.
        zero: 0, where entries start at their first row.
        text: keys and values of the prompt, (L, T, C) each.
        texts: how often these have moved, as they do for a prompt of another length.
    """

    x0: Tensor
    noise: Tensor
    source: Tensor
    sigma: Tensor
    level: Tensor
    timestep: Tensor
    slots: Tensor
    table: Table
    denoise: Sources
    context: Sources
    entry: Tensor
    zero: Tensor
    text: tuple[Tensor, Tensor] | None = None
    texts: int = 0
    _displaced: dict[tuple[str, torch.dtype], Displaced] = field(default_factory=dict)
    _commits: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _placed: tuple[int, ...] | None = None
    _text_of: Callable[[], Any] = lambda: None

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
            level=numbers(1),
            timestep=numbers(1),
            slots=torch.zeros(tokens, device=device, dtype=torch.int32),
            table=Table(numbers(tokens, half), numbers(tokens, half)),
            denoise=sources(),
            context=sources(),
            entry=torch.zeros((), device=device, dtype=torch.int64),
            zero=torch.zeros((), device=device, dtype=torch.int64),
        )

    def turn(self, positions: Sequence[int], rotary: Callable[[Sequence[int]], Tensor]) -> None:
        """Rotate slots to the positions of the block's frames, if they are not already.

        Args:
            positions: temporal.
            rotary: rotations (S*N, head_dim/2) complex at temporal positions.
        """
        if tuple(positions) != self._placed:
            table = rotary(positions)
            self.table.cos.copy_(table.real)
            self.table.sin.copy_(table.imag)
            self._placed = tuple(positions)

    def read(self, text: TextCache) -> None:
        """Bring in a prompt, if it is not there already."""
        if text is self._text_of():
            return
        keys = torch.stack([key[0].flatten(1) for key in text.keys])
        values = torch.stack([value[0].flatten(1) for value in text.values])
        self._text_of = weakref.ref(text)
        if self.text is None or self.text[0].shape != keys.shape:
            self.text, self.texts = (keys, values), self.texts + 1
            return
        self.text[0].copy_(keys)
        self.text[1].copy_(values)

    def point(self, reuse: Reuse, context: Reuse, cache: KeyValueCache) -> Pointed:
        """Say where each slot's key and value come from, in denoising and in the context pass.

        Args:
            reuse, context: of either kind of pass; batch of 1.
            cache: the stream's.

        Returns:
            the buffers that this is in, beside those that it always is in.
        """
        for buffer, given in ((self.denoise, reuse), (self.context, context)):
            buffer.new.copy_(given.new[0])
            buffer.old.copy_(given.old[0])
        if reuse.out is not None:
            self.denoise.out.copy_(reuse.out[0])
        commits = self._point_commits(cache)
        denoise_displaced = context_displaced = None
        if reuse.displaced and reuse.out is not None:
            denoise_displaced = self._split("denoise", self.denoise, reuse.bank)
        if context.displaced:
            context_displaced = self._split("context", self.context, context.bank)
        return Pointed(denoise_displaced, context_displaced, *commits)

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

    def _point_commits(self, cache: KeyValueCache) -> tuple[Tensor, Tensor]:
        """Rows of the cache that the block's frames go to."""
        n, stored = cache.shape.grid.frame_tokens, cache.stored()
        place = torch.arange(n, device=self.slots.device)
        self.context.out.fill_(-1)
        for j, rows in stored:
            self.context.out[j] = place + rows.start
        committed = torch.cat([place + rows.start + cache.block_rows for _, rows in stored])
        from_rows = torch.cat([place + j * n for j, _ in stored])
        # streams that have just begun commit other numbers of rows than graphs know
        known = self._commits.setdefault(len(committed), (committed, from_rows))
        known[0].copy_(committed)
        known[1].copy_(from_rows)
        return known
