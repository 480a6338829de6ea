"""One prompt passes over into another: mixtures of their embeddings, a block each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MOST_BLOCKS", "PromptBlend"]

#: Blocks that a blend may take.
MOST_BLOCKS = 64


class PromptBlend:
    """The embeddings of each block of a stream, on their way from one prompt to the next.

    The k-th of N blocks has (1 - k / N) of the old embeddings and k / N of the new ones; the last
    has the new ones themselves. A prompt that comes meanwhile starts from the mixture shown last.

    Args:
        embeds: of the first block, (1, L, text_dim).

    Attributes:
        embeds: of the latest block.
    """

    def __init__(self, embeds: Tensor) -> None:
        self.embeds = self._old = self._new = embeds
        self._done = self._blocks = 1

    def turn_to(self, embeds: Tensor, blocks: int) -> None:
        """Reach other embeddings in so many blocks from the next one on; 0 and 1 are at once."""
        self._old, self._new = self.embeds, embeds
        self._done, self._blocks = 0, max(blocks, 1)

    def step(self) -> bool:
        """Go on to the next block; whether its embeddings are others than those of the last."""
        if self._done == self._blocks:
            return False
        self._done += 1
        if self._done == self._blocks or self._old.shape != self._new.shape:
            # embeddings that callers give may have other lengths, which do not mix
            self.embeds, self._done = self._new, self._blocks
        else:
            self.embeds = torch.lerp(self._old, self._new, self._done / self._blocks)
        return True
