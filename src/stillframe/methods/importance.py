"""Importance-based token merging: important tokens stay, the others merge into them, a baseline.

Source: Wu et al., Importance-based Token Merging (arXiv 2411.16720), one of LIPAR's baselines. The
paper measures importance by the magnitude of classifier-free guidance, which distilled models run
without. The signal here: how much the source latent patch changed against the frame before it, the
same distance that pruning thresholds. It is known before the first pass and costs nothing.

Different here, too: the paper draws destinations at random from a pool of important tokens and
leaves those of the pool alone that match badly. Here the pool is what the rate leaves, and all of
it are destinations, so as many rows are left and every merged token goes to the one most like it,
in any frame of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.detection.latents import patch_distance
from stillframe.methods.base import register
from stillframe.methods.merging import TokenMerging
from stillframe.tokens.merge import Merger, MergeSetup, Merging, match, most_similar, split
from stillframe.tokens.source import SourceBlock

__all__ = ["ImportanceMerging"]


class _ImportanceMerger(Merger):
    """Merges what changed least; which tokens those are holds for the whole block."""

    def __init__(self, rate: float, trim: float, setup: MergeSetup) -> None:
        self._trim = trim
        self._remove = min(round(rate * setup.grid.tokens), setup.grid.tokens - 1)

    def begin_block(self, source: SourceBlock) -> None:
        before = torch.cat([source.previous.unsqueeze(1), source.tokens[:, :-1]], 1)
        importance = patch_distance(source.tokens, before, self._trim).flatten(1)
        count = importance.shape[1] - self._remove
        order = importance.argsort(dim=1, descending=True, stable=True)
        important = torch.zeros_like(importance, dtype=torch.bool)
        self._parts = split(important.scatter(1, order[:, :count], True), count)

    def match(self, step: int, layer: int, hidden: Tensor, keys: Callable[[], Tensor]) -> Merging:
        sources, targets = self._parts
        score, target = most_similar(hidden, sources, targets)
        return match(score, target, sources, targets, self._remove)


@register("importance")
@dataclass(frozen=True)
class ImportanceMerging(TokenMerging):
    """Merge the tokens whose source changed least into the others."""

    summary = "merge the tokens whose source changed least into the others"
    paper = "2411.16720"

    def merger(self, setup: MergeSetup) -> Merger:
        return _ImportanceMerger(self.rate, self.trim, setup)
