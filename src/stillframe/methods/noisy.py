"""Pruning with recovery from noisy tokens, a baseline.

The same mask as ``prune``; a pruned token takes its temporal predecessor's key and value of the
same pass, noise and all. The ablation of arXiv 2603.05811 that shows high-frequency noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.methods.base import register
from stillframe.methods.prune import InterFramePruning

__all__ = ["NoisyPruning"]


@register("noisy")
@dataclass(frozen=True)
class NoisyPruning(InterFramePruning):
    """`InterFramePruning` with another default."""

    summary = "prune with recovery noisy: duplicates of noisy keys and values"

    recovery: str = "noisy"
