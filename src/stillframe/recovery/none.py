"""Plain pruning: pruned tokens are simply absent, in the block and later in the cache.

The baseline that recovery is measured against; arXiv 2603.05811 shows its artefacts.
"""

from __future__ import annotations

import torch

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Reuse
from stillframe.recovery.base import Recovery, register
from stillframe.tokens.grid import Plan

__all__ = ["NoRecovery"]


@register("none")
class NoRecovery(Recovery):
    """Kept tokens attend to kept tokens and to what was ever computed."""

    summary = "pruned tokens are dropped from attention (plain pruning)"
    complete = False

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        return Reuse(plan.rows, torch.full_like(plan.rows, -1), cache.bank)
