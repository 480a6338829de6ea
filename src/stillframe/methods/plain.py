"""Plain pruning: inter-frame pruning without attention recovery, a baseline.

The same mask as ``prune``; pruned tokens are absent from attention and from the cache. The ablation
of arXiv 2603.05811 that shows artefacts.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.methods.base import register
from stillframe.methods.prune import InterFramePruning

__all__ = ["PlainPruning"]


@register("plain")
@dataclass(frozen=True)
class PlainPruning(InterFramePruning):
    """`InterFramePruning` with another default."""

    summary = "prune with recovery none: pruned tokens are dropped from attention"

    recovery: str = "none"
