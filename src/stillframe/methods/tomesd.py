"""Token merging for diffusion (ToMe for SD): within frames, around self-attention; a baseline.

Source: Bolya & Hoffman, Token Merging for Fast Stable Diffusion (arXiv 2303.17604). One token of
every 2 x 2 window is a destination, drawn at random anew for every layer and pass; the sources most
like a destination of their frame, by cosine, are merged into it (mean), queries, keys and values
alike, and get its output back. As in the paper, only self-attention is merged. The paper does so
in the layers of the largest resolution; here all layers have the same.

Different here: a latent frame stands for the paper's image; similarity is that of what goes into
self-attention, after normalisation and modulation, where the paper compares before them; a row has
the rotary position of its destination, which the paper's model does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.methods.base import register
from stillframe.methods.merging import TokenMerging
from stillframe.tokens.merge import Merger, MergeSetup, Merging, Windows, match, most_similar

__all__ = ["TokenMergingDiffusion"]


class _WindowMerger(Merger):
    """Bipartite matching within each frame, destinations by windows."""

    def __init__(self, method: TokenMergingDiffusion, setup: MergeSetup) -> None:
        grid = setup.grid
        self._grid, self._device = grid, setup.device
        self._remove = round(method.rate * grid.frame_tokens)
        self._windows = Windows(grid, setup.device)
        self._generator: torch.Generator | None = None
        if method.random:
            self._generator = torch.Generator(setup.device).manual_seed(method.seed)

    def match(self, step: int, layer: int, hidden: Tensor, keys: Callable[[], Tensor]) -> Merging:
        frames = hidden.unflatten(1, (self._grid.frames, -1)).flatten(0, 1)
        targets = self._windows.first(self._priority().expand(len(frames), -1))
        sources = self._windows.others(targets)
        score, target = most_similar(frames, sources, targets)
        return match(score, target, sources, targets, self._remove).joined(self._grid.frames)

    def _priority(self) -> Tensor:
        """(1, N), the same for all frames and batch rows: a batch edits as its rows alone would."""
        n = self._grid.frame_tokens
        if self._generator is None:
            return torch.zeros(1, n, device=self._device)
        return torch.rand(1, n, generator=self._generator, device=self._device)


@register("tomesd")
@dataclass(frozen=True)
class TokenMergingDiffusion(TokenMerging):
    """Merge similar tokens of a frame around self-attention.

    Attributes:
        random: draw the destination of each window; false takes the upper left token.
        seed: of the draws, one sequence a stream.
    """

    summary = "merge similar tokens of each frame around self-attention (ToMe for SD)"
    paper = "2303.17604"
    most = 0.75

    random: bool = True
    seed: int = 0

    def merger(self, setup: MergeSetup) -> Merger:
        return _WindowMerger(self, setup)
