"""Staleness: how far what is reused has come to differ from its source. Needs no model.

Of every patch that was reused, the root mean square difference between its source now and the
source that it was computed from, in grey levels (`visible.Anchors.advance`). A mean over a picture
hides the one place that is wrong, so quantiles and the largest are told. Holds counts and a few
blocks, on the device, whatever the length.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["QUANTILES", "Staleness"]

#: What is told, beside the largest.
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

_PER_LEVEL = 20  # bins a grey level
_LEVELS = 256
_WAITING = 32  # blocks that are counted at once: to count is a dozen small kernels


class Staleness:
    """Counts of one stream."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._counts: Tensor | None = None
        self._most: Tensor | None = None

    def add(self, stale: Tensor, keep: Tensor) -> None:
        """Take a block's staleness in grey levels, and its mask, (B, S, h, w) each.

        Both are kept for some blocks, so nobody may write to them.
        """
        self._waiting.append((stale, keep))
        if len(self._waiting) == _WAITING:
            self._count()

    def _count(self) -> None:
        """Count the blocks that wait."""
        if not self._waiting:
            return
        waiting = zip(*self._waiting, strict=True)
        stale, keep = (torch.cat([x.flatten() for x in part]) for part in waiting)
        self._waiting.clear()
        # computed patches count as below everything, which the histogram leaves out
        values = stale.float().masked_fill(keep, -1.0)
        counts = torch.histc(values, _PER_LEVEL * _LEVELS, 0, _LEVELS)
        most = values.amax()
        if self._counts is None or self._most is None:
            self._counts, self._most = counts.double(), most
        else:
            # not in place: blocks are counted in inference mode, and the last ones outside of it
            self._counts = self._counts + counts
            self._most = torch.maximum(self._most, most)

    def told(self) -> dict[str, float] | None:
        """Quantiles and ``max`` in grey levels; None if nothing was reused. Waits for the device.

        Quantiles are the upper ends of bins of a twentieth of a level.
        """
        self._count()
        if self._counts is None or self._most is None:
            return None
        total = float(self._counts.sum())
        if not total:
            return None
        most, sums = float(self._most), self._counts.cumsum(0)
        found = {}
        for name, share in QUANTILES.items():
            number = int((sums < share * total).sum())
            found[name] = min((number + 1) / _PER_LEVEL, most)
        return {**found, "max": most}
