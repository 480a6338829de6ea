"""Merging tokens into fewer rows, and giving every token its row back.

What the merging baselines have in common: a `Merging` says which tokens share a row, a `Merger`
makes one for every self-attention of a block. The residual stream stays whole, because video needs
every token back: tokens are merged (mean) before the projections and copied back after them.

Pure index arithmetic. It does not know who merges or why (``methods``), nor attention
(``attention``).

Source: Bolya et al., Token Merging (arXiv 2210.09461, bipartite soft matching); Bolya & Hoffman
(arXiv 2303.17604, merging and unmerging around a layer)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.tokens.grid import Grid, take
from stillframe.tokens.source import SourceBlock

__all__ = ["MergeSetup", "Merger", "Merging", "Windows", "match", "most_similar", "split"]


class Merging(NamedTuple):
    """Which of T tokens share which of K rows; equally many rows in every batch row.

    Attributes:
        rows: (B, T) int64, the row that each token is merged into and gets back.
        slots: (B, K) int64, the token whose place in the block a row has (its destination).
        size: (B, K) float32, tokens merged into a row; at least 1.
        proportional: whether attention shall weigh a row by its size.
    """

    rows: Tensor
    slots: Tensor
    size: Tensor
    proportional: bool = False

    def merge(self, x: Tensor) -> Tensor:
        """Means of the tokens of each row: (B, T, D) -> (B, K, D), summed in float32."""
        batch, kept = self.slots.shape
        offset = torch.arange(batch, device=x.device).unsqueeze(1) * kept
        total = torch.zeros(batch * kept, x.shape[2], device=x.device)
        total.index_add_(0, (self.rows + offset).flatten(), x.float().flatten(0, 1))
        return (total / self.size.view(-1, 1)).type_as(x).unflatten(0, (batch, kept))

    def unmerge(self, x: Tensor) -> Tensor:
        """Every token's row: (B, K, D) -> (B, T, D)."""
        return take(x, self.rows)

    def joined(self, frames: int) -> Merging:
        """Mergings of single frames, (B*S, ...), laid side by side as one of blocks, (B, ...)."""
        tokens, kept = self.rows.shape[1], self.slots.shape[1]
        order = torch.arange(frames, device=self.rows.device).view(1, -1, 1)
        return Merging(
            (self.rows.unflatten(0, (-1, frames)) + order * kept).flatten(1),
            (self.slots.unflatten(0, (-1, frames)) + order * tokens).flatten(1),
            self.size.unflatten(0, (-1, frames)).flatten(1),
            self.proportional,
        )


@dataclass(frozen=True)
class MergeSetup:
    """What a merger is built from.

    Attributes:
        grid: the block's S x h x w tokens.
        steps: denoising passes a block.
        device: of the tokens.
    """

    grid: Grid
    steps: int
    device: torch.device


class Merger(ABC):
    """Decides which tokens share a row. One object serves one stream."""

    def begin_block(self, source: SourceBlock) -> None:  # noqa: B027
        """Look at the source of a block that is about to be denoised with merging."""

    @abstractmethod
    def match(self, step: int, layer: int, hidden: Tensor, keys: Callable[[], Tensor]) -> Merging:
        """Decide for one self-attention.

        Args:
            step: denoising pass, from 0; the context pass is never merged.
            layer: transformer layer.
            hidden: (B, S*N, D), what goes into self-attention: normalised and modulated.
            keys: computes this layer's keys of them, (B, S*N, heads, head_dim), before rotation.
        """


def split(chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Slots (B, T - count) of the tokens not chosen, and slots (B, count) of the others, in order.

    Args:
        chosen: (B, T) bool.
        count: how many are true in each row; counting them here would wait for the device.
    """
    order = chosen.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : order.shape[1] - count], order[:, order.shape[1] - count :]


def most_similar(metric: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each source, the cosine to the target most like it, and which of the targets that is.

    Args:
        metric: (B, T, D) what is compared.
        sources, targets: (B, A) and (B, D) slots.

    Returns:
        (B, A) each.
    """
    unit = F.normalize(metric, dim=-1)
    cosine = take(unit, sources) @ take(unit, targets).transpose(1, 2)
    score, target = cosine.max(dim=2)
    return score, target


def match(
    score: Tensor,
    target: Tensor,
    sources: Tensor,
    targets: Tensor,
    remove: int,
    *,
    proportional: bool = False,
) -> Merging:
    """Merge the ``remove`` best sources into their targets; everything else keeps a row of its own.

    Args:
        score: (B, A), how good merging a source would be.
        target: (B, A), the number of its target.
        sources, targets: (B, A) and (B, D) slots; together every token once.
        remove: how many to merge; as many as there are sources if more.
        proportional: see `Merging`.

    Returns:
        rows in the order: sources left alone, targets.
    """
    remove = min(remove, sources.shape[1])
    order = score.argsort(dim=1, descending=True, stable=True)
    merged, alone = order[:, :remove], order[:, remove:]
    count = alone.shape[1]
    slots = torch.cat([sources.gather(1, alone), targets], 1)
    rows = slots.new_zeros(len(slots), sources.shape[1] + targets.shape[1])
    own = torch.arange(slots.shape[1], device=rows.device).expand_as(slots)
    rows.scatter_(1, slots, own)
    rows.scatter_(1, sources.gather(1, merged), target.gather(1, merged) + count)
    size = torch.zeros(slots.shape, device=rows.device)
    size.scatter_add_(1, rows, torch.ones(rows.shape, device=rows.device))
    return Merging(rows, slots, size, proportional)


class Windows:
    """The 2 x 2 windows of a frame of tokens; smaller ones where a side is odd.

    Attributes:
        count: number of windows.
        of: (N,) the window of each token.
        size: (windows,) tokens of each.
    """

    def __init__(self, grid: Grid, device: torch.device) -> None:
        height, width = grid.height, grid.width
        across = (width + 1) // 2
        rows = torch.arange(height, device=device).unsqueeze(1)
        columns = torch.arange(width, device=device)
        self.count = (height + 1) // 2 * across
        self.of = (rows // 2 * across + columns // 2).flatten()
        self._corner = (rows % 2 * 2 + columns % 2).flatten()
        members = torch.full((self.count * 4,), -1, device=device)
        members[self.of * 4 + self._corner] = torch.arange(height * width, device=device)
        self._members = members.view(-1, 4)
        self.size = (self._members >= 0).sum(1)

    def first(self, priority: Tensor) -> Tensor:
        """The token of each window that comes first by priority (B, N): slots (B, windows)."""
        missing = self._members < 0
        ranked = priority[:, self._members.clamp(min=0)].masked_fill(missing, -torch.inf)
        best = ranked.argmax(dim=2, keepdim=True)
        return self._members.expand(len(priority), -1, -1).gather(2, best).squeeze(2)

    def others(self, chosen: Tensor) -> Tensor:
        """Tokens not among ``chosen`` (B, windows): slots (B, N - windows), in order."""
        mask = torch.zeros(len(chosen), len(self.of), dtype=torch.bool, device=chosen.device)
        return split(mask.scatter(1, chosen, True), self.count)[0]
