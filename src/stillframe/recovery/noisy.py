"""Noisy duplicates: pruned tokens take their temporal predecessor's key and value of this pass.

Where a place is pruned in the whole block, the chain of predecessors ends at the last committed
frame. Kept for the ablation: duplicated noise is correlated, which the model never saw in training
(arXiv 2603.05811, noise-aware duplication).
"""

from __future__ import annotations

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Reuse
from stillframe.recovery.base import Recovery, register
from stillframe.tokens.grid import Plan

__all__ = ["NoisyRecovery"]


@register("noisy")
class NoisyRecovery(Recovery):
    """Copies within the block, noise and all."""

    summary = "keys and values of the temporal predecessor at the same noise level"

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        return Reuse.of_predecessors(plan, cache.last_frame(), cache.bank)
