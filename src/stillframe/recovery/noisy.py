"""Noisy duplicates: pruned tokens take their temporal predecessor's key and value of this pass.

Where a place is pruned in the whole block, the chain of predecessors ends at the last committed
frame. Kept for the ablation: duplicated noise is correlated, which the model never saw in training
(arXiv 2603.05811, noise-aware duplication).
"""

from __future__ import annotations

from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.rotary import rotate
from stillframe.recovery.base import Recovery, register

__all__ = ["NoisyRecovery"]


@register("noisy")
class NoisyRecovery(Recovery):
    """Copies within the block, noise and all."""

    summary = "keys and values of the temporal predecessor at the same noise level"

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        key, value = block.from_predecessors(layer, key, value)
        block.write(layer, None, rotate(key, block.table), value)
