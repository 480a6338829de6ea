"""Fused passes of which a process runs its slice of the computed tokens, with all of its heads.

As in `ShardedAttention`, tokens are exchanged for heads around self-attention: norms of queries and
keys, which go over all heads, come before it, and what places and rotates them does no more than
that. Each process denoises its slice through all passes; results meet when the last one is done.

On cards passes are captured as CUDA graphs, exchanges included, as those of one card are. A pass
exchanges the same whether it runs eagerly, is captured or replayed, so processes need not capture
in the same block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.reuse import Reuse
from stillframe.backbones.base import BlockInputs, TextCache
from stillframe.backbones.fused.blocks import FusedBlocks
from stillframe.backbones.fused.buffers import Buffers
from stillframe.backbones.fused.lengths import LengthGraphs
from stillframe.backbones.fused.transformer import FusedTransformer, Projected
from stillframe.backbones.parallel.attention import to_heads, to_tokens
from stillframe.backbones.parallel.group import Group
from stillframe.kernels.placing import rotated_queries
from stillframe.tokens.grid import Plan

__all__ = ["ShardedBlocks", "ShardedTransformer"]

#: Told of a block before its passes: its plan, what stands in for what, and the rest of it.
OnBegin = Callable[[Plan, Reuse, TextCache, BlockInputs], None]


class ShardedTransformer(FusedTransformer):
    """A `FusedTransformer` on a slice of the tokens.

    Args:
        transformer: the model.
        group: the processes.
    """

    def __init__(self, transformer: WanTransformer3DModel, group: Group) -> None:
        super().__init__(transformer)
        self._group = group

    def projected(self, layer: Any, normed: Any) -> Projected:
        """See `FusedTransformer.projected`: of this process's heads and all tokens."""
        query, key, value, norm_query, norm_key = super().projected(layer, normed)
        attn = layer.block.attn1
        query = rotated_queries(query, norm_query, None, None, attn.norm_q.eps)
        key = rotated_queries(key, norm_key, None, None, attn.norm_k.eps)
        own = torch.stack([query, key, value]).unsqueeze(1).unflatten(3, (self.heads, -1))
        query, key, value = to_heads(self._group, own)[:, 0].flatten(2)
        return Projected(query, key, value, None, None)

    def returned(self, attended: Tensor) -> Tensor:
        """See `FusedTransformer.returned`."""
        rows = attended.unflatten(1, (-1, self.head_dim)).unsqueeze(0)
        return to_tokens(self._group, rows)[0].flatten(1)


class ShardedBlocks(FusedBlocks):
    """The fused passes of one stream, in one of several processes.

    Args:
        model: the transformer.
        attention: of this process's heads; a block's tokens can be divided among the processes.
        channels, fp8: see `FusedBlocks`.
        group: the processes.
        on_begin: called before the passes of a block, by the process that leads.
        on_commit: called before its context pass.
    """

    def __init__(
        self,
        model: ShardedTransformer,
        attention: BlockAttention,
        channels: int | None,
        group: Group,
        *,
        fp8: bool,
        on_begin: OnBegin | None = None,
        on_commit: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(model, attention, channels, fp8=fp8)
        # the last one is a whole block, which can be divided
        self.lengths = sorted({-(-n // group.size) * group.size for n in self.lengths})
        self._group = group
        self._on_begin, self._on_commit = on_begin, on_commit
        self._noted: LengthGraphs | None = None

    def commit(self) -> None:
        """See `FusedBlocks.commit`."""
        if self._on_commit is not None:
            self._on_commit()
        super().commit()

    def _begin(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Buffers:
        static = super()._begin(plan, text, inputs)
        if self._on_begin is not None:
            self._on_begin(plan, self._reuse, text, inputs)
        return static

    def _slice(self, length: int) -> slice:
        size = length // self._group.size
        return slice(self._group.rank * size, (self._group.rank + 1) * size)

    def _collect(self, length: int) -> None:
        found = self._group.gather(self._buffers.x0[self._slice(length)])
        if found is not None:
            self._buffers.x0[:length] = found.flatten(0, 1)

    def _find_graphs(self, static: Buffers) -> LengthGraphs | None:
        found = super()._find_graphs(static)
        if found is not None and found is not self._noted:
            self._noted = found
            self._group.drop_first(found)
        return found

    def warm(self, counts: Sequence[int] | None) -> Iterator[int]:
        """Nothing: the other processes would have to be told."""
        return iter(())
