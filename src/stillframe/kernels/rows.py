"""What keys and values are placed by: rotations, where each row comes from, and rows to take.

Data that a captured graph reads, so that one graph serves every mask. Not known here: who writes
it (``attention``, ``backbones``), or how rows are placed (``placing``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FP8", "Displaced", "Entries", "Sources", "Table", "packed", "unpacked"]

#: One byte a number: 4 bits of exponent and 3 of mantissa, up to 448.
FP8 = torch.float8_e4m3fn


class Table(NamedTuple):
    """Rotations of some rows: cosines and sines, (rows, head_dim/2) float32."""

    cos: Tensor
    sin: Tensor


class Sources(NamedTuple):
    """Where each of a block's slots comes from: (S, N) int32 each, -1 for "nowhere".

    Attributes:
        new: row of this pass's projections.
        old: row of the entries, looked at where ``new`` is -1. With both -1 the slot is left alone.
        out: row of the entries to write the result to.
    """

    new: Tensor
    old: Tensor
    out: Tensor


class Entries(NamedTuple):
    """Keys before rotation and values to take from and write to, (rows, C) each.

    FP8 is stored as uint8. Only what is written to may lack ``values``: keys alone are kept then.
    ``offset`` is an int64 scalar on the device, the row that row 0 of a source means: so one graph
    serves all denoising passes.
    """

    keys: Tensor
    values: Tensor | None
    offset: Tensor


class Displaced(NamedTuple):
    """Entries taken by slots of other places, which overwrite them: they are copied first.

    Attributes:
        rows: (S, N) int32 row of the entries that a slot takes, -1 where it is none of those.
        sources: of those slots alone, ``old`` being the slot's own number: its row in ``scratch``.
        scratch: as many rows as slots, in the entries' format.
    """

    rows: Tensor
    sources: Sources
    scratch: Entries

    @classmethod
    def like(cls, sources: Sources, scratch: Entries) -> Displaced:
        """None yet of as many slots, all buffers but ``scratch`` being new."""
        rows, *nowhere = (torch.full_like(sources.old, -1) for _ in range(4))
        return cls(rows, Sources(*nowhere), scratch)

    def split(self, sources: Sources) -> None:
        """Move slots that take entries of other places here, in place; row r of the entries is of
        place r modulo N."""
        places = sources.old.shape[1]
        slots = torch.arange(sources.old.numel(), device=sources.old.device).view_as(sources.old)
        taking = (sources.new < 0) & (sources.old >= 0)
        moved = taking & (sources.old % places != slots % places)
        self.rows.copy_(torch.where(moved, sources.old, -1))
        self.sources.old.copy_(torch.where(moved, slots, -1))
        self.sources.out.copy_(torch.where(moved, sources.out, -1))
        sources.old.masked_fill_(moved, -1)


def packed(x: Tensor, like: Tensor) -> Tensor:
    """Numbers in the format of a store: FP8 as bytes where ``like`` is uint8, saturating."""
    if like.dtype != torch.uint8 or x.dtype == torch.uint8:
        return x.to(like.dtype)
    # the format has no infinity: what is beyond its range would be no number at all
    most = torch.finfo(FP8).max
    return x.clamp(-most, most).to(FP8).view(torch.uint8)


def unpacked(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What was `packed`, in ``dtype``."""
    return x.view(FP8).to(dtype) if x.dtype == torch.uint8 else x.to(dtype)
