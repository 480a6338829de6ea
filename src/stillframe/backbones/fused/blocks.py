"""A stream's blocks in fused passes: static buffers, a few lengths, a graph for each.

Kept tokens are padded to one of a few lengths, whose passes are captured as CUDA graphs when that
pays (``lengths.py``), and replayed from then on. Which token lies where, which
row stands in for which and how noisy it all is are data in buffers that never move, so no mask and
no prompt makes a new graph. Padding computes and writes nothing that anyone reads. Without CUDA the
same passes run eagerly.

Buffers and graphs are those of all streams of the model that have the same size and kind of
recovery; they take turns (``kernels.shared``). Buffers belong to the workplace of the cache, and
graphs, which read a recovery's store as well, to that of the recovery.

It reads the answers that `BlockAttention` does (`Reuse`), on the same cache and the same stores, so
that a block may be run either way. Batches, absent tokens and merging have only the plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.reuse import Reuse
from stillframe.backbones.base import BlockInputs, TextCache
from stillframe.backbones.fused.buffers import Buffers
from stillframe.backbones.fused.lengths import LengthGraphs, Passes, bucket_lengths
from stillframe.backbones.fused.transformer import FusedTransformer, LayerRows, PassInputs
from stillframe.kernels.placing import place, rotate_rows
from stillframe.kernels.rows import Sources, Table
from stillframe.tokens.grid import Plan

__all__ = ["FusedBlocks"]


class FusedBlocks:
    """The fused passes of one stream.

    Args:
        model: the transformer.
        attention: the stream's, of a batch of 1; it says where buffers and graphs are shared.
        channels: latent channels of a source that is concatenated to the input, None for none.
        fp8: multiply in FP8 where it pays.

    Attributes:
        captured: graphs that were captured for blocks of this stream.
    """

    def __init__(
        self,
        model: FusedTransformer,
        attention: BlockAttention,
        channels: int | None,
        *,
        fp8: bool = False,
    ) -> None:
        self.model = model
        self.attention = attention
        self.cache = attention.cache
        self.lengths: Sequence[int] = bucket_lengths(self.cache.shape.grid.tokens)
        self.captured = 0
        self._channels, self._fp8 = channels, fp8
        self._place = attention.recovery.memory.place
        self._own: LengthGraphs | None = None
        self._graphs: LengthGraphs | None = None
        self._kinds = Passes(None, None)

    def can(self, plan: Plan) -> bool:
        """Whether it can run this block: holes in the cache, or new ones, are not for it."""
        return (plan.everything or self.attention.recovery.complete) and not self.cache.holes

    def denoise(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Tensor:
        """The denoising passes of a block; `commit` has to follow.

        Returns:
            (1, S*N, P) float32 results at their slots, zero elsewhere.
        """
        shared = self.cache.memory.place
        self._static = shared.once("buffers", lambda: Buffers.like(inputs.source, self.cache.shape))
        static = self._begin(plan, text, inputs)
        count, reuse = plan.counts[0], self._reuse
        self._length = next(n for n in self.lengths if n >= count)
        if self._graphs is not None:
            self._graphs.begin(self._kinds, self._length)
        slots = static.slots[: self._length].long()
        extra = len(inputs.passes) - inputs.kept
        for step, (sigma, told, level) in enumerate(inputs.passes):
            static.sigma.fill_(sigma)
            static.level.fill_(level)
            static.timestep.fill_(told * inputs.timestep_scale)
            static.entry.fill_(reuse.bank.offset(max(step - extra, 0)))
            static.noise[: self._length] = inputs.noise[step][slots]
            self._run(self._kinds.denoise, self._pass, self._length)
        static.level.fill_(inputs.context)
        static.timestep.fill_(inputs.context * inputs.timestep_scale)
        self._collect(self._length)
        whole = torch.zeros_like(inputs.source)
        whole[static.slots[:count].long()] = static.x0[:count]
        return whole.unsqueeze(0)

    def commit(self) -> None:
        """The context pass: commit the keys and values of the block's results."""
        self._run(self._kinds.context, self._context_pass, self._length)
        self.cache.advance()

    def warm(self, counts: Sequence[int] | None) -> Iterator[int]:
        """See `FusedPasses.warm`; what the stream remembers is spoilt."""
        lengths = self.lengths
        if counts is not None:
            lengths = sorted({next(n for n in self.lengths if n >= count) for count in counts})
        for length in lengths:
            # blocks in which something moved have other graphs
            made = [self._warm_one(length, displaced) for displaced in (False, True)]
            if any(made):
                yield length

    def _warm_one(self, length: int, displaced: bool) -> bool:
        """Capture a length for one kind of block; false if there was nothing to capture."""
        if self._graphs is None:
            return False
        static = self._buffers
        reuse, context = (x._replace(displaced=displaced) for x in (self._reuse, self._context))
        self._pointed = static.point(reuse, context, self.cache)
        graphs = self._graphs = self._find_graphs(static)
        if graphs is None or graphs.captured(self._kinds, length):
            return False
        for sources in (static.denoise, static.context):
            sources.new.clamp_(max=length - 1)  # the latest block may have computed more
        graphs.begin(self._kinds, length, capture=True)
        self._run(self._kinds.denoise, self._pass, length)
        self._run(self._kinds.context, self._context_pass, length)
        return True

    def _run(self, kind: Hashable, work: Callable[[int], None], length: int) -> None:
        if self._graphs is None:
            work(length)
            return
        self.captured += self._graphs.run(kind, length, lambda: work(length))

    def _find_graphs(self, static: Buffers) -> LengthGraphs | None:
        """Graphs that a block is run with, None where it is run eagerly."""
        if not self._place.captures or not self._steady:
            return None
        reuse, bank = self._reuse, self._reuse.bank
        seen, pointed = self.cache.visible_rows(), self._pointed
        denoise = "denoise", seen, self._fp8, reuse.constant, reuse.out is None
        own: tuple[Hashable, ...] = (pointed.denoise is None,)
        shared = self._place.holds(bank.keys) or self.cache.memory.place.holds(bank.keys)
        if shared or self._in_place:
            graphs = self._place.once("lengths", LengthGraphs, self.model)
        else:
            # a graph stays with the rows that it was captured with, and these are the stream's own
            own += tuple(x.data_ptr() for x in bank)
            graphs = self._own = self._own or LengthGraphs()
        graphs.read(static.texts)
        stored, hidden = len(pointed.stored), self.attention.hidden_rows.stop
        context = "context", seen, self._fp8, stored, pointed.context is None, hidden
        self._kinds = Passes((*denoise, *own), context)
        return graphs

    @property
    def _steady(self) -> bool:
        """Whether the window is full: from then on shapes stay as they are."""
        shape = self.cache.shape
        return len(self.cache.context()) == shape.sink + shape.window - shape.grid.frames

    @property
    def _buffers(self) -> Buffers:
        assert self._static is not None
        return self._static

    def _slice(self, length: int) -> slice:
        """The computed tokens that are denoised here: all of them, but where others do some."""
        return slice(0, length)

    def _collect(self, length: int) -> None:
        """Have the results of all computed tokens in the static buffers."""

    def _pass(self, length: int) -> None:
        """One denoising pass over the static buffers."""
        static, own = self._buffers, self._slice(length)
        x0 = static.x0[own]
        x = (1 - static.level) * x0 + static.level * static.noise[own]
        velocity = self.model(
            self._tokens(x, own), static.timestep, self._prompt, self._inputs(length)
        )
        assert velocity is not None
        static.x0[own] = x - static.sigma * velocity.float()

    def _context_pass(self, length: int) -> None:
        static, own = self._buffers, self._slice(length)
        x = (1 - static.level) * static.x0[own] + static.level * static.noise[own]
        tokens = self._tokens(x, own)
        self.model(tokens, static.timestep, self._prompt, self._context_inputs(length))

    @property
    def _prompt(self) -> tuple[Tensor, Tensor]:
        text = self._buffers.text
        assert text is not None
        return text

    def _tokens(self, x: Tensor, own: slice) -> Tensor:
        if self._channels is None:
            return x
        shown = self._buffers.source[own]
        pixels = (-1, self._channels)
        return torch.cat([x.unflatten(1, pixels), shown.unflatten(1, pixels)], 2).flatten(1)

    def _inputs(self, length: int) -> PassInputs:
        static, cache, reuse = self._buffers, self.cache, self._reuse

        def rows(layer: int) -> LayerRows:
            cache.open(layer)
            if self._in_place:
                return LayerRows(*self._rows(layer), None, None)
            entries = reuse.bank.entries(layer, static.entry)
            kept = None if reuse.out is None else entries
            return LayerRows(*self._rows(layer), entries, kept, self._pointed.denoise)

        slots = static.slots[:length]
        return PassInputs(
            static.table, slots, static.denoise, cache.visible_rows(), rows, fp8=self._fp8
        )

    def _context_inputs(self, length: int) -> PassInputs:
        static, cache, pointed = self._buffers, self.cache, self._pointed

        def rows(layer: int) -> LayerRows:
            cache.open(layer)
            taken = cache.bank.entries(layer, static.zero)
            # raw keys can be committed at once; values are still read by this very pass
            kept = taken if cache.packed else taken._replace(values=None)
            return LayerRows(*self._rows(layer), taken, kept, self._pointed.context)

        def commit(layer: int) -> None:
            values = self._rows(layer)[1]
            values.index_copy_(0, pointed.committed, values.index_select(0, pointed.stored))

        slots = static.slots[:length]
        return PassInputs(
            static.table,
            slots,
            static.context,
            cache.visible_rows(),
            rows,
            None if cache.packed else commit,
            only_keys=True,
            fp8=self._fp8,
            hidden=self.attention.hidden_rows,
        )

    @property
    def _in_place(self) -> bool:
        """Whether what passes take from a bank stands in its rows since the block began."""
        return self._reuse.constant and not self.cache.packed

    def _rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (R, C) each."""
        return self.cache.keys(layer)[0].flatten(1), self.cache.values(layer)[0].flatten(1)

    def _begin(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Buffers:
        """Bring all buffers up to date for a block."""
        shape = self.cache.shape
        static = self._buffers
        static.read(text)
        grid, count = shape.grid, plan.counts[0]
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
        self._context = self.attention.context_reuse(plan)
        self._pointed = static.point(self._reuse, self._context, self.cache)
        if self._in_place and not plan.everything:
            self._fill(static, self._reuse)
        self._graphs = self._find_graphs(static)
        return static

    def _place_context(self, static: Buffers) -> None:
        """Positions of the block, and rotated keys of the frames it sees."""
        cache, grid = self.cache, self.cache.shape.grid
        own, context = self.attention.positions()
        static.turn(own, lambda frames: self.attention.rotary(frames, grid.height, grid.width))
        if context and cache.packed:
            cache.place(self.attention.rotary(context, grid.height, grid.width))
        elif context:
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
