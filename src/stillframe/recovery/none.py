"""Plain pruning: pruned tokens are simply absent, in the block and later in the cache.

The baseline that recovery is measured against; arXiv 2603.05811 shows its artefacts.
"""

from __future__ import annotations

from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.recovery.base import Recovery, register

__all__ = ["NoRecovery"]


@register("none")
class NoRecovery(Recovery):
    """Kept tokens attend to kept tokens and to what was ever computed."""

    summary = "pruned tokens are dropped from attention (plain pruning)"
    complete = False

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        block.write_own(layer, key, value)
