"""What a block's keys and values are made of, as data: which row of which bank stands at each slot.

A recovery answers with a `Reuse` once a block, for all its denoising passes; `BlockAttention` reads
it with torch's gathers, fused passes read the same in a kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.kernels.rows import Entries, unpacked
from stillframe.tokens.grid import Plan, take

__all__ = ["Bank", "Reuse"]


class Bank(NamedTuple):
    """Keys (before rotation) and values of tokens, to be taken from and written to.

    Attributes:
        keys, values: (T, L, B, R, heads, head_dim) each, contiguous within a layer of a pass; T
            denoising passes, or 1 that all of them share. Numbers in FP8 are stored as uint8, see
            `rows.packed`. The last row of a bank that is written to is scrap.
    """

    keys: Tensor
    values: Tensor

    def rows(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a pass and layer, (B, R, heads, head_dim) each."""
        at = min(step, len(self.keys) - 1)
        return self.keys[at, layer], self.values[at, layer]

    def offset(self, step: int) -> int:
        """Rows from the first pass to another, within `entries`."""
        width = self.keys.shape[4] * self.keys.shape[5]
        return min(step, len(self.keys) - 1) * self.keys.stride(0) // width

    def entries(self, layer: int, offset: Tensor) -> Entries:
        """The rows of a layer from its first pass on, for a batch of 1; `offset` tells the pass."""
        return Entries(_flat(self.keys, layer), _flat(self.values, layer), offset)


def _flat(x: Tensor, layer: int) -> Tensor:
    """Rows (R', heads*head_dim) from a layer's first row in the first pass to its last in the last,
    those of other layers that lie between included."""
    passes, _, _, rows, heads, head_dim = x.shape
    width = heads * head_dim
    count = (passes - 1) * x.stride(0) // width + rows
    return x.as_strided((count, width), (width, 1), x[0, layer].storage_offset())


class Reuse(NamedTuple):
    """Where the keys and values of a block's slots come from in its denoising passes.

    Keys are rotated to the slot that they are used at, wherever they come from. Where nothing is
    pruned, every slot takes its own. Row r of a bank is an entry of place r modulo N, and slots
    write to entries of their own place only.

    Attributes:
        new: (B, S, N) int64 row of the pass's own projections, which are those of the computed
            tokens in order (`Plan.rows`); -1: another's stands in.
        old: (B, S, N) int64 row of the bank where ``new`` is -1; with both -1 the token is absent.
        bank: what is taken from and written to.
        out: (B, S, N) int64 row of the bank that what stands at a slot is written to after all have
            been read, -1: none; None: nothing is written.
        displaced: whether slots may take entries of other places than their own, which then have
            to be read before slots of those places overwrite them.
    """

    new: Tensor
    old: Tensor
    bank: Bank
    out: Tensor | None = None
    displaced: bool = False

    @classmethod
    def of_predecessors(cls, plan: Plan, last: Tensor, bank: Bank) -> Reuse:
        """What `Plan.provider` says: a pruned token takes its predecessor's, in order.

        Args:
            plan: of the block.
            last: (N,) rows of the bank of the frame before the block.
            bank: committed frames.
        """
        shape, n = plan.keep.shape, plan.keep.shape[2]
        own = plan.provider >= n
        row = plan.rows.flatten(1).gather(1, (plan.provider - n).clamp(min=0))
        before = last[plan.provider.clamp(max=n - 1)]
        new, old = torch.where(own, row, -1), torch.where(own, -1, before)
        moved = plan.origin is not None
        return cls(new.view(shape), old.view(shape), bank, displaced=moved)

    @property
    def constant(self) -> bool:
        """Whether what is taken from the bank is the same in all passes."""
        return self.out is None and len(self.bank.keys) == 1

    def joined(self, step: int, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of all slots in a pass, (B, S*N, heads, head_dim) each.

        Args:
            step: denoising pass, from 0.
            layer: transformer layer.
            key, value: projections of the computed tokens, (B, K, heads, head_dim).
        """
        new, old = self.new.flatten(1), self.old.flatten(1).clamp(min=0)
        own, rows = (new >= 0)[..., None, None], new.clamp(min=0)
        keys, values = (unpacked(take(x, old), key.dtype) for x in self.bank.rows(step, layer))
        return torch.where(own, take(key, rows), keys), torch.where(own, take(value, rows), values)
