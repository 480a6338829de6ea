"""Clean duplicates: a pruned token takes the key and value of the last committed frame.

Committed frames are clean (their context pass ran at sigma 0), so no noise is duplicated. Keys are
cached before rotation and rotated to where they are used. Source: arXiv 2603.05811, noise-aware
duplication; the papers' method.
"""

from __future__ import annotations

from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.rotary import rotate
from stillframe.recovery.base import Recovery, register
from stillframe.tokens.grid import take

__all__ = ["CleanRecovery"]


@register("clean")
class CleanRecovery(Recovery):
    """Copies from the cache."""

    summary = "keys and values of the last committed, noise-free frame (the papers)"

    def begin_block(self, block: BlockAttention) -> None:
        """Fill the pruned rows once: they are the same at every denoising pass."""
        pruned = block.plan.pruned
        if pruned is None:
            return
        shape = self.setup.shape
        table = block.table[pruned.index]
        place = pruned.index % shape.grid.frame_tokens
        for layer in range(shape.layers):
            key, value = block.cache.last(layer)
            rotated = rotate(take(key, place), table)
            block.write(layer, pruned, rotated, take(value, place))

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        block.write_own(layer, key, value)
