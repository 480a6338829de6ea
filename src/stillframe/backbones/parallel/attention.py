"""Self-attention of a block whose tokens are spread over processes, each of which has some heads.

Everywhere else in the model a process has a slice of the block's computed tokens, with all heads.
Here it gives the others their heads of its tokens and gets its own heads of theirs, attends to the
whole block and its context with these, and changes back. So a process keeps keys and values of its
own heads alone, and recovery goes on within them.

Source: Jacobs et al., DeepSpeed Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention.block import BlockAttention, Provides, Rotary
from stillframe.attention.cache import KeyValueCache
from stillframe.backbones.parallel.group import Group

__all__ = ["ShardedAttention", "joined", "slices", "to_heads", "to_tokens"]


def slices(x: Tensor, count: int) -> Tensor:
    """Tokens (B, K, ...) in slices of equal length, (count, B, ceil(K / count), ...), the last ones
    filled up with zeros."""
    batch, tokens, *rest = x.shape
    size = -(-tokens // count)
    padded = x.new_zeros((batch, size * count, *rest))
    padded[:, :tokens] = x
    return padded.unflatten(1, (count, size)).transpose(0, 1)


def joined(parts: Tensor, tokens: int) -> Tensor:
    """Undo `slices`: (count, B, ceil(K / count), ...) to (B, K, ...)."""
    return parts.transpose(0, 1).flatten(1, 2)[:, :tokens]


def to_heads(group: Group, x: Tensor) -> Tensor:
    """Some heads of all tokens, for all heads of some tokens.

    Args:
        group: the processes.
        x: (M, B, k, heads, dim) of this process's slice of k tokens.

    Returns:
        (M, B, processes * k, heads / processes, dim).
    """
    given = x.unflatten(3, (group.size, -1)).permute(3, 0, 1, 2, 4, 5)
    return group.exchange(given).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)


def to_tokens(group: Group, x: Tensor) -> Tensor:
    """Undo `to_heads`: (B, K, heads / processes, dim) to (B, ceil(K / processes), heads, dim)."""
    taken = group.exchange(slices(x, group.size))
    return taken.permute(1, 2, 0, 3, 4).flatten(2, 3)


class ShardedAttention(BlockAttention):
    """Self-attention of a stream's current block, of some of its heads.

    Args:
        group: the processes.
        cache: of this process's heads.
        rotary, recovery, position_limit, context_sink: see `BlockAttention`.
    """

    def __init__(
        self,
        group: Group,
        cache: KeyValueCache,
        rotary: Rotary,
        recovery: Provides,
        position_limit: int,
        context_sink: bool = True,
    ) -> None:
        super().__init__(cache, rotary, recovery, position_limit, context_sink)
        self.group = group

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: str | None = None
    ) -> Tensor:
        """Attention of one layer, for this process's slice of the kept tokens.

        Args:
            layer: transformer layer.
            query, key, value: of the slice, (B, K / processes, all heads, head_dim).
            backend: see `BlockAttention.attend`.
        """
        own = torch.stack([query, key, value])
        query, key, value = to_heads(self.group, own)[:, :, : self._tokens]
        return to_tokens(self.group, super().attend(layer, query, key, value, backend))

    @property
    def _tokens(self) -> int:
        """K, of all processes."""
        kept = self.plan.kept
        return self.plan.keep[0].numel() if kept is None else kept.index.shape[1]
