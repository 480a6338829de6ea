"""Token merging in its first form, for vision transformers (ToMe), a baseline.

Source: Bolya et al., Token Merging: Your ViT But Faster (arXiv 2210.09461). Tokens alternate
between sources and destinations; similarity is the cosine of keys, averaged over heads; attention
is proportional: the logarithm of a row's size is added to its logits, so that it counts as often as
the tokens in it.

Different here: the paper merges between attention and feed-forward layer and goes on with fewer
tokens to the end. A video needs every token back, so each layer merges around its own
self-attention and sizes start at 1 again; the residual stream stays whole. The paper's keys know no
rotation; ours are compared before it. The matching runs over all frames of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.methods.base import register
from stillframe.methods.merging import TokenMerging
from stillframe.tokens.merge import Merger, MergeSetup, Merging, match, most_similar

__all__ = ["TokenMergingVision"]


class _AlternatingMerger(Merger):
    """Even tokens into odd ones, by their keys."""

    def __init__(self, rate: float, setup: MergeSetup) -> None:
        self._remove = round(rate * setup.grid.tokens)
        self._slots = torch.arange(setup.grid.tokens, device=setup.device).unsqueeze(0)

    def match(self, step: int, layer: int, hidden: Tensor, keys: Callable[[], Tensor]) -> Merging:
        slots = self._slots.expand(len(hidden), -1)
        sources, targets = slots[:, ::2], slots[:, 1::2]
        score, target = most_similar(keys().mean(2), sources, targets)
        return match(score, target, sources, targets, self._remove, proportional=True)


@register("tome")
@dataclass(frozen=True)
class TokenMergingVision(TokenMerging):
    """Merge every other token into the ones between, by keys, with proportional attention."""

    summary = "merge every other token by its key, proportional attention (ToMe)"
    paper = "2210.09461"
    most = 0.5

    def merger(self, setup: MergeSetup) -> Merger:
        return _AlternatingMerger(self.rate, setup)
