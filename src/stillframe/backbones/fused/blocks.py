"""A stream's blocks in fused passes: static buffers, a few lengths, a graph for each.

Kept tokens are padded to one of a few lengths (`bucket_lengths`); a length's passes are captured as
CUDA graphs the first time it comes up, and replayed from then on. Which token lies where, which
row stands in for which and how noisy it all is are data in buffers that never move, so no mask and
no prompt makes a new graph. Padding computes and writes nothing that anyone reads. Without CUDA the
same passes run eagerly.

It reads the answers that `BlockAttention` does (`Reuse`), on the same cache and the same stores, so
that a block may be run either way. Batches, absent tokens and merging have only the plain way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.reuse import Reuse
from stillframe.backbones.base import BlockInputs, TextCache
from stillframe.backbones.fused.buffers import Buffers
from stillframe.backbones.fused.transformer import FusedTransformer, LayerRows, PassInputs
from stillframe.kernels.graphs import Graphs
from stillframe.kernels.placing import place, rotate_rows
from stillframe.kernels.rows import Sources, Table
from stillframe.tokens.grid import Plan

__all__ = ["FusedBlocks", "bucket_lengths"]


def bucket_lengths(tokens: int) -> list[int]:
    """Lengths that kept tokens are padded to, rising; the last is ``tokens``.

    In steps of 1/32 of a block, rounded to what matrix products like.
    """
    step = max(64, tokens // 32 // 64 * 64)
    return [*range(step, tokens, step), tokens]


class FusedBlocks:
    """The fused passes of one stream.

    Args:
        model: the transformer.
        attention: the stream's, of a batch of 1.
        channels: latent channels of a source that is concatenated to the input, None for none.
        graphs: capture CUDA graphs.
        fp8: multiply in FP8 where it pays.
    """

    def __init__(
        self,
        model: FusedTransformer,
        attention: BlockAttention,
        channels: int | None,
        *,
        graphs: bool,
        fp8: bool = False,
    ) -> None:
        self.model = model
        self.attention = attention
        self.cache = attention.cache
        self.lengths = bucket_lengths(self.cache.shape.grid.tokens)
        self._channels, self._fp8 = channels, fp8
        self._graphs = Graphs() if graphs else None
        self._static: Buffers | None = None
        self._text: tuple[Tensor, Tensor] | None = None
        self._text_of: TextCache | None = None
        self._placed: tuple[int, ...] | None = None

    def can(self, plan: Plan) -> bool:
        """Whether it can run this block: holes in the cache, or new ones, are not for it."""
        return (plan.everything or self.attention.recovery.complete) and not self.cache.holes

    @property
    def captured(self) -> int:
        """Graphs captured so far."""
        return 0 if self._graphs is None else self._graphs.count

    def denoise(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Tensor:
        """The denoising passes of a block; `commit` has to follow.

        Returns:
            (1, S*N, P) float32 results at their slots, zero elsewhere.
        """
        static = self._begin(plan, text, inputs)
        count = plan.counts[0]
        length = next(n for n in self.lengths if n >= count)
        slots = static.slots[:length].long()
        self._length, reuse = length, self._reuse
        # a graph stays with the rows that it was captured with
        bank = reuse.constant or (*(x.data_ptr() for x in reuse.bank), reuse.out is None)
        moved = static.denoise_displaced is not None
        for step, sigma in enumerate(inputs.sigmas):
            static.sigma.fill_(sigma)
            static.timestep.fill_(sigma * inputs.timestep_scale)
            static.entry.fill_(reuse.bank.offset(step))
            static.noise[:length] = inputs.noise[step][slots]
            key = ("denoise", length, self.cache.visible_rows(), bank, moved)
            self._run(key, self._pass, length)
        whole = torch.zeros_like(inputs.source)
        whole[slots[:count]] = static.x0[:count]
        return whole.unsqueeze(0)

    def commit(self) -> None:
        """The context pass: commit the block's clean keys and values."""
        static = self._static
        assert static is not None
        static.timestep.zero_()
        moved = static.context_displaced is not None
        key = ("context", self._length, self.cache.visible_rows(), len(static.stored), moved)
        self._run(key, self._context_pass, self._length)
        self.cache.advance()

    def _run(self, key: tuple[object, ...], work: Callable[[int], None], length: int) -> None:
        if self._graphs is None or not self._steady:
            work(length)
        else:
            self._graphs.run(key, lambda: work(length))

    @property
    def _steady(self) -> bool:
        """Whether the window is full: from then on shapes stay as they are."""
        shape = self.cache.shape
        return len(self.cache.context()) == shape.sink + shape.window - shape.grid.frames

    def _pass(self, length: int) -> None:
        """One denoising pass over the static buffers."""
        static = self._static
        assert static is not None
        x0 = static.x0[:length]
        x = (1 - static.sigma) * x0 + static.sigma * static.noise[:length]
        velocity = self.model(
            self._tokens(x, length), static.timestep, self._prompt, self._inputs(length)
        )
        assert velocity is not None
        static.x0[:length] = x - static.sigma * velocity.float()

    def _context_pass(self, length: int) -> None:
        static = self._static
        assert static is not None
        tokens = self._tokens(static.x0[:length], length)
        self.model(tokens, static.timestep, self._prompt, self._context_inputs(length))

    @property
    def _prompt(self) -> tuple[Tensor, Tensor]:
        assert self._text is not None
        return self._text

    def _tokens(self, x: Tensor, length: int) -> Tensor:
        if self._channels is None:
            return x
        assert self._static is not None
        shown = self._static.source[:length]
        pixels = (-1, self._channels)
        return torch.cat([x.unflatten(1, pixels), shown.unflatten(1, pixels)], 2).flatten(1)

    def _inputs(self, length: int) -> PassInputs:
        static, cache, reuse = self._static, self.cache, self._reuse
        assert static is not None

        def rows(layer: int) -> LayerRows:
            if reuse.constant:  # in place since the block began
                return LayerRows(*self._rows(layer), None, None)
            entries = reuse.bank.entries(layer, static.entry)
            kept = None if reuse.out is None else entries
            return LayerRows(*self._rows(layer), entries, kept, static.denoise_displaced)

        slots = static.slots[:length]
        return PassInputs(
            static.table, slots, static.denoise, cache.visible_rows(), rows, fp8=self._fp8
        )

    def _context_inputs(self, length: int) -> PassInputs:
        static, cache = self._static, self.cache
        assert static is not None

        def rows(layer: int) -> LayerRows:
            taken = cache.bank.entries(layer, static.zero)
            # raw keys can be committed at once; values are still read by this very pass
            kept = taken._replace(values=None)
            return LayerRows(*self._rows(layer), taken, kept, static.context_displaced)

        def commit(layer: int) -> None:
            values = self._rows(layer)[1]
            values.index_copy_(0, static.committed, values.index_select(0, static.stored))

        slots = static.slots[:length]
        visible = cache.visible_rows()
        return PassInputs(
            static.table, slots, static.context, visible, rows, commit, True, self._fp8
        )

    def _rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (R, C) each."""
        return self.cache.keys(layer)[0].flatten(1), self.cache.values(layer)[0].flatten(1)

    def _begin(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Buffers:
        """Bring all buffers up to date for a block."""
        self._take_text(text)
        static = self._static = self._static or Buffers.like(inputs.source, self.cache.shape)
        grid, count = self.cache.shape.grid, plan.counts[0]
        slots = torch.arange(grid.tokens, device=inputs.source.device)
        if plan.kept is not None:
            static.slots.zero_()
            slots = plan.kept.index[0]
        static.slots[:count] = slots
        shown = inputs.source[static.slots.long()]
        static.x0.copy_(shown)
        static.source.copy_(shown if inputs.shows_source else torch.zeros_like(shown))
        self._place_context(static)
        self._reuse = self.attention.recovery.reuse(plan, self.cache)
        static.point(self._reuse, self.attention.context_reuse(plan), self.cache)
        if self._reuse.constant and not plan.everything:
            self._fill(static, self._reuse)
        return static

    def _place_context(self, static: Buffers) -> None:
        """Positions of the block, and rotated keys of the frames it sees."""
        cache, grid = self.cache, self.cache.shape.grid
        own, context = self.attention.positions()
        if tuple(own) != self._placed:
            table = self.attention.rotary(own, grid.height, grid.width)
            static.table.cos.copy_(table.real)
            static.table.sin.copy_(table.imag)
            self._placed = tuple(own)
        if context:
            table = self.attention.rotary(context, grid.height, grid.width)
            seen = Table(table.real.contiguous(), table.imag.contiguous())
            raw, keys = cache.bank.keys[0, :, 0].flatten(2), cache.all_keys()[:, 0].flatten(2)
            rotate_rows(raw, seen, keys, cache.block_rows)

    def _fill(self, static: Buffers, reuse: Reuse) -> None:
        """Put what all passes take from a bank into its rows, once."""
        nowhere = torch.full_like(static.denoise.new, -1)
        old = torch.where(static.denoise.new < 0, static.denoise.old, nowhere)
        sources = Sources(nowhere, old, nowhere)
        for layer in range(self.cache.shape.layers):
            taken = reuse.bank.entries(layer, static.zero)
            rows = self._rows(layer)
            place(*rows, None, 0.0, static.table, sources, rows, taken, None)

    def _take_text(self, text: TextCache) -> None:
        """Bring a prompt into the buffers that graphs read."""
        if text is self._text_of:
            return
        keys = torch.stack([key[0].flatten(1) for key in text.keys])
        values = torch.stack([value[0].flatten(1) for value in text.values])
        if self._text is not None and self._text[0].shape == keys.shape:
            self._text[0].copy_(keys)
            self._text[1].copy_(values)
        else:
            self._text = (keys, values)
            if self._graphs is not None:
                self._graphs.forget()
        self._text_of = text
