"""Self-attention of one block over the cache: what a backbone hands to its self-attention.

It knows the block's plan, its positions and the cache, and asks a recovery once a block which rows
stand in for the keys and values of pruned tokens. Queries are the kept tokens only, so cost stays
linear in kept tokens. For methods that merge tokens it carries their `Merger`.

With nothing pruned every recovery reduces to the plain causal model. This is the slow reference of
fused passes, which read the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Reuse
from stillframe.attention.rotary import frame_positions, rotate
from stillframe.kernels.rows import packed
from stillframe.kernels.shared import Memory
from stillframe.tokens.grid import Plan, Slots, put
from stillframe.tokens.merge import Merger, Merging

__all__ = ["Attend", "BlockAttention", "Provides", "Rotary"]

#: From queries, keys and values (B, K, heads, head_dim), and the name of a diffusers attention
#: backend if one is wanted, to outputs of the same shape.
Attend = Callable[..., Tensor]

#: The rotations of frames at some positions, of height x width tokens, see `rotary_table`.
Rotary = Callable[[Sequence[int], int, int], Tensor]


class Provides(Protocol):
    """What the block asks of a recovery, see ``stillframe.recovery``."""

    @property
    def complete(self) -> bool: ...

    @property
    def memory(self) -> Memory: ...

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse: ...

    def skip(self, plan: Plan) -> None: ...


class BlockAttention:
    """Self-attention of a stream's current block.

    Use: `begin_block`, then for each denoising pass set `step` and run the transformer, then set
    ``step = None`` for the context pass (which commits), then `end_block`.

    Args:
        cache: committed frames.
        rotary: the backbone's rotations.
        recovery: what stands in for pruned tokens.
        position_limit: see `rotary.frame_positions`.
        context_sink: see `StreamSettings`.

    Attributes:
        step: the denoising pass, None for the context pass.
        merger: what merges tokens around self-attention in this block, if anything does.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        rotary: Rotary,
        recovery: Provides,
        position_limit: int,
        context_sink: bool = True,
    ) -> None:
        self.cache = cache
        self._context_sink = context_sink
        self.recovery = recovery
        self.rotary = rotary
        self.step: int | None = 0
        self.merger: Merger | None = None
        self._merged_rows: list[int] = []
        self._limit = position_limit
        self.plan = Plan(torch.empty(0), None, (0,))
        self.table = torch.empty(0)

    def positions(self) -> tuple[list[int], list[int]]:
        """Temporal positions of the coming block's frames, and of those it sees, in the order in
        which they are stored."""
        cache = self.cache
        frames, sink = cache.shape.grid.frames, cache.shape.sink
        return frame_positions(cache.frames, frames, cache.storage_order(), sink, self._limit)

    def begin_block(self, plan: Plan) -> None:
        """Place the block and its context: positions, rotated context keys, visible rows."""
        grid = self.cache.shape.grid
        own, context = self.positions()
        self.plan = plan
        self._merged_rows = []
        self.table = self.rotary(own, grid.height, grid.width)
        self._own_table = self.table if plan.kept is None else self.table[plan.kept.index]
        if context:
            self.cache.place(self.rotary(context, grid.height, grid.width))
        self._visible, self._mask = self._visibility(plan)
        self._seen_in_context = self._without(self.hidden_rows)
        self._denoising = self.recovery.reuse(plan, self.cache)
        self._context = self.context_reuse(plan)

    @property
    def hidden_rows(self) -> slice:
        """Rows of the prefix that the coming block's context pass does not see."""
        rows = self.cache.sink_rows()
        return slice(rows.start, rows.start) if self._context_sink else rows

    def _without(self, hidden: slice) -> tuple[Tensor | None, Tensor | None]:
        """`_visibility` with some rows of the prefix left out."""
        if hidden.start == hidden.stop:
            return self._visible, self._mask
        rows = torch.arange(self.cache.visible_rows(), device=self.table.device)
        if self._visible is not None:
            rows = self._visible
        rows = rows[(rows < hidden.start) | (rows >= hidden.stop)]
        return rows, None if self._mask is None else self._mask[..., rows]

    def context_reuse(self, plan: Plan) -> Reuse:
        """Where keys and values come from in the context pass: everything is clean then, so pruned
        tokens take their predecessors', unless they are absent."""
        if self.recovery.complete:
            return Reuse.of_predecessors(plan, self.cache.last_frame(), self.cache.bank)
        return Reuse(plan.rows, torch.full_like(plan.rows, -1), self.cache.bank)

    def _visibility(self, plan: Plan) -> tuple[Tensor | None, Tensor | None]:
        """Rows attention may read when pruned tokens have no keys: an index for one batch row, a
        mask for several; (None, None) if all rows of the prefix count."""
        if self.recovery.complete or (plan.everything and not self.cache.holes):
            return None, None
        present = torch.cat([plan.keep.flatten(1), self.cache.present()], 1)
        if present.shape[0] > 1:
            return None, present[:, None, None, :]
        return present[0].nonzero().squeeze(1), None

    def run(
        self,
        layer: int,
        hidden: Tensor,
        keys: Callable[[], Tensor],
        attention: Callable[[Tensor, Attend], Tensor],
    ) -> Tensor:
        """Self-attention of one layer, over merged rows where the method merges tokens.

        Tokens are merged before the projections and get their rows' outputs after them; never in
        the context pass, whose keys are committed.

        Args:
            layer: transformer layer.
            hidden: (B, K, D) what goes into self-attention: normalised and modulated.
            keys: computes the layer's keys of it, (B, K, heads, head_dim), before rotation.
            attention: the layer's projections around what attends, (B, K', D) to (B, K', D) for
                any number of rows.
        """
        if self.merger is None or self.step is None:
            return attention(hidden, partial(self.attend, layer))
        merging = self.merger.match(self.step, layer, hidden, keys)
        attend = partial(self.attend_merged, merging, layer)
        return merging.unmerge(attention(merging.merge(hidden), attend))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: str | None = None
    ) -> Tensor:
        """Attention of one layer.

        Args:
            layer: transformer layer.
            query, key, value: of the kept tokens, (B, K, heads, head_dim), before rotation.
            backend: diffusers attention backend, None for its default.

        Returns:
            (B, K, heads, head_dim).
        """
        self.cache.open(layer)
        key, value = self._placed(layer, key, value)
        rows = self.cache.visible_rows()
        keys, values = self.cache.keys(layer)[:, :rows], self.cache.values(layer)[:, :rows]
        seen, mask = self._seen_in_context if self.step is None else (self._visible, self._mask)
        if seen is not None:
            keys, values = keys.index_select(1, seen), values.index_select(1, seen)
        out = dispatch_attention_fn(
            rotate(query, self._own_table), keys, values, attn_mask=mask, backend=backend
        )
        if self.step is None:
            # only now: committing overwrites the frames that leave the window, which were just read
            self.cache.commit(layer, key, value)
        return out

    def _placed(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Make the block's rows of the cache ready for attention, and remember what shall be.

        Returns:
            keys before rotation, and values, of the whole block, (B, S*N, heads, head_dim) each.
        """
        step, reuse = (0, self._context) if self.step is None else (self.step, self._denoising)
        if not self.plan.everything:
            key, value = reuse.joined(step, layer, key, value)
        self.cache.keys(layer)[:, : self.cache.block_rows] = rotate(key, self.table)
        self.cache.values(layer)[:, : self.cache.block_rows] = value
        if reuse.out is not None:
            out = reuse.out.flatten(1)
            for rows, x in zip(reuse.bank.rows(step, layer), (key, value), strict=True):
                put(rows, Slots(out, out), packed(x, rows))
        return key, value

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
        backend: str | None = None,
    ) -> Tensor:
        """`attend` for merged rows (B, K, heads, head_dim) of a whole block, in a denoising pass.

        Rows stand where their destinations do. Nothing is written: the context pass will be whole.
        """
        self._merged_rows.append(query.shape[1])
        self.cache.open(layer)
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

    def end_block(self) -> None:
        """Count the block as committed, after the context pass."""
        self.cache.advance(self._holes(self.plan))

    def rewind(self, blocks: int) -> None:
        """Forget the latest blocks, see `KeyValueCache.rewind`."""
        self.cache.rewind(blocks)

    def skip_block(self, plan: Plan) -> None:
        """Commit a block of which nothing is computed: every token repeats its predecessor, from
        wherever that moved."""
        self.recovery.skip(plan)
        if self.recovery.complete:
            self.cache.repeat_last(plan.traced)
        self.cache.advance(self._holes(plan))

    def _holes(self, plan: Plan) -> Tensor | None:
        return None if self.recovery.complete or plan.everything else plan.keep.flatten(1)
