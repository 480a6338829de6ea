"""What rows of queries, keys and values are placed by: rotations, sources, and entries.

Data that a captured graph reads, so that one graph serves every mask. Not known here: who writes
it (``buffers``), or how rows are placed (``placing``).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Entries", "Sources", "Table"]


class Table(NamedTuple):
    """Rotations of some rows: cosines and sines, (rows, head_dim/2) float32."""

    cos: Tensor
    sin: Tensor


class Sources(NamedTuple):
    """Where each of a block's slots comes from: (S, N) int32 each, -1 for "nowhere".

    Attributes:
        new: row of this pass's projections, for kept tokens.
        old: row of the entries, looked at where ``new`` is -1. With both -1 the slot is left alone.
        out: row of the entries to write the result to.
    """

    new: Tensor
    old: Tensor
    out: Tensor


class Entries(NamedTuple):
    """Keys before rotation and values to take from and write to, (rows, C) each.

    FP8 is held as uint8. Only what is written to may lack ``values``: keys alone are kept then.
    ``offset`` is an int64 scalar on the device, the row that row 0 of a source means: so one graph
    serves all denoising passes.
    """

    keys: Tensor
    values: Tensor | None
    offset: Tensor
