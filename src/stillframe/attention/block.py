"""Self-attention of one block over the cache: what rides in the transformer's rotary slot.

The transformer's blocks hand an object untouched to their self-attention processor. This is that
object: it knows the block's plan, its positions and the cache, and lets a `Recovery` decide what
stands in for the keys and values of pruned tokens. Queries are the kept tokens only, so cost stays
linear in kept tokens. For methods that merge tokens it carries their `Merger`.

With nothing pruned every recovery reduces to the plain causal model.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.rotary import frame_positions, rotary_table, rotate
from stillframe.tokens.grid import Plan, Slots, put
from stillframe.tokens.merge import Merger, Merging
from stillframe.tokens.restore import predecessor_rows, restore

__all__ = ["BlockAttention", "Fill"]


class Fill(Protocol):
    """What the block asks of a recovery, see ``stillframe.recovery``."""

    complete: ClassVar[bool]

    def begin_block(self, block: BlockAttention) -> None: ...

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None: ...


class BlockAttention:
    """Self-attention of a stream's current block.

    Use: `begin_block`, then for each denoising pass set `step` and run the transformer, then set
    ``step = None`` for the context pass (which commits), then `end_block`.

    Args:
        cache: committed frames.
        rope: the model's rotary module.
        recovery: what stands in for pruned tokens.
        position_limit: see `rope.frame_positions`.

    Attributes:
        step: the denoising pass, None for the context pass.
        merger: what merges tokens around self-attention in this block, if anything does.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        rope: WanRotaryPosEmbed,
        recovery: Fill,
        position_limit: int,
    ) -> None:
        self.cache = cache
        self.recovery = recovery
        self.step: int | None = 0
        self.merger: Merger | None = None
        self._merged_rows: list[int] = []
        self._rope = rope
        self._limit = position_limit
        self.plan = Plan(torch.empty(0), None, None, (0,))
        self.table = torch.empty(0)

    def begin_block(self, plan: Plan) -> None:
        """Place the block and its context: positions, rotated context keys, visible rows."""
        cache, grid = self.cache, self.cache.shape.grid
        order = cache.storage_order()
        own, context = frame_positions(
            cache.frames, grid.frames, order, cache.shape.sink, self._limit
        )
        self.plan = plan
        self._merged_rows = []
        self.table = rotary_table(self._rope, own, grid.height, grid.width)
        self._own_table = self.table if plan.kept is None else self.table[plan.kept.index]
        if context:
            cache.place(rotary_table(self._rope, context, grid.height, grid.width))
        self._predecessors = None if plan.everything else predecessor_rows(plan.keep)
        self._visible, self._mask = self._visibility(plan)
        self.recovery.begin_block(self)

    def _visibility(self, plan: Plan) -> tuple[Tensor | None, Tensor | None]:
        """Rows attention may read when pruned tokens have no keys: an index for one batch row, a
        mask for several; (None, None) if all rows of the prefix count."""
        if self.recovery.complete or (plan.everything and not self.cache.holes):
            return None, None
        present = torch.cat([plan.keep.flatten(1), self.cache.present()], 1)
        if present.shape[0] > 1:
            return None, present[:, None, None, :]
        return present[0].nonzero().squeeze(1), None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: str | None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            layer: transformer layer.
            query, key, value: of the kept tokens, (B, K, heads, head_dim), before rotation.
            backend: diffusers attention backend, None for its default.

        Returns:
            (B, K, heads, head_dim).
        """
        if self.step is None:
            key, value = self._place_clean(layer, key, value)
        else:
            self.recovery.place(self, self.step, layer, key, value)
        rows = self.cache.visible_rows()
        keys, values = self.cache.keys(layer)[:, :rows], self.cache.values(layer)[:, :rows]
        if self._visible is not None:
            keys = keys.index_select(1, self._visible)
            values = values.index_select(1, self._visible)
        out = dispatch_attention_fn(
            rotate(query, self._own_table), keys, values, attn_mask=self._mask, backend=backend
        )
        if self.step is None:
            # only now: committing overwrites the frames that leave the window, which were just read
            self.cache.commit(layer, key, value)
        return out

    @property
    def merging(self) -> Merger | None:
        """What merges tokens in this pass: never the context pass, whose keys are committed."""
        return None if self.step is None else self.merger

    @property
    def attended_share(self) -> float:
        """Rows that self-attention ran over / tokens of the block, mean over its merged calls; 1
        without any."""
        if not self._merged_rows:
            return 1.0
        return sum(self._merged_rows) / len(self._merged_rows) / self.cache.shape.grid.tokens

    def attend_merged(
        self,
        merging: Merging,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        backend: str | None,
    ) -> Tensor:
        """`attend` for merged rows (B, K, heads, head_dim) of a whole block, in a denoising pass.

        Rows stand where their destinations do. Nothing is written: the context pass will be whole.
        """
        self._merged_rows.append(query.shape[1])
        table = self.table[merging.slots]
        context = slice(self.cache.block_rows, self.cache.visible_rows())
        keys, values = self.cache.keys(layer)[:, context], self.cache.values(layer)[:, context]
        return dispatch_attention_fn(
            rotate(query, table),
            torch.cat([rotate(key, table), keys], 1),
            torch.cat([value, values], 1),
            attn_mask=self._merged_mask(merging, query.dtype),
            backend=backend,
        )

    def _merged_mask(self, merging: Merging, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits of merged rows and context, (B, 1, 1, rows), if anything."""
        if not (merging.proportional or self.cache.holes):
            return None
        size = merging.size if merging.proportional else torch.ones_like(merging.size)
        present = self.cache.present().to(size.dtype)
        return torch.cat([size, present], 1).log().to(dtype)[:, None, None, :]

    def write_own(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the kept tokens' keys (rotated here) and values into the block's rows."""
        self.write(layer, self.plan.kept, rotate(key, self._own_table), value)

    def write(self, layer: int, slots: Slots | None, rotated: Tensor, value: Tensor) -> None:
        """Put rotated keys and values into the block's rows ``slots`` (None: all of them)."""
        keys, values = self.cache.keys(layer), self.cache.values(layer)
        if slots is None:
            keys[:, : rotated.shape[1]] = rotated
            values[:, : value.shape[1]] = value
        else:
            put(keys, slots, rotated)
            put(values, slots, value)

    def from_predecessors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The whole block's keys (before rotation) and values, a pruned token taking those of its
        temporal predecessor, in order: (B, S*N, heads, head_dim) each."""
        if self.plan.kept is None or self._predecessors is None:
            return key, value
        last_key, last_value = self.cache.last(layer)
        return (
            restore(self.scattered(key), last_key, self._predecessors),
            restore(self.scattered(value), last_value, self._predecessors),
        )

    def scattered(self, own: Tensor) -> Tensor:
        """Kept tokens' ``own`` (B, K, ...) at their slots: (B, S*N, ...), zero elsewhere."""
        if self.plan.kept is None:
            return own
        tokens = self.cache.shape.grid.tokens
        whole = own.new_zeros(own.shape[0], tokens + 1, *own.shape[2:])
        put(whole, self.plan.kept, own)
        return whole[:, :tokens]

    def _place_clean(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The context pass: everything is clean, so the block's keys and values are final.

        Puts them into the block's rows and returns them whole, (B, S*N, heads, head_dim) each.
        """
        if self.recovery.complete:
            key, value = self.from_predecessors(layer, key, value)
            self.write(layer, None, rotate(key, self.table), value)
            return key, value
        self.write_own(layer, key, value)
        return self.scattered(key), self.scattered(value)

    def end_block(self) -> None:
        """Count the block as committed, after the context pass."""
        self.cache.advance(self._holes(self.plan))

    def skip_block(self, plan: Plan) -> None:
        """Commit a block of which nothing is computed: every token repeats its predecessor."""
        if self.recovery.complete:
            self.cache.repeat_last()
        self.cache.advance(self._holes(plan))

    def _holes(self, plan: Plan) -> Tensor | None:
        return None if self.recovery.complete or plan.everything else plan.keep.flatten(1)
