"""The process that leads: the whole stream, with a share of the tokens and heads.

To the engine it is a backbone like any other. Source, mask, noise and pictures are this process's
business alone; the others repeat what is done to keys and values, and run the model's layers.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from stillframe.attention.block import BlockAttention, Provides
from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.backbones.base import BlockInputs, FusedPasses, TextCache
from stillframe.backbones.parallel.attention import ShardedAttention, joined, slices
from stillframe.backbones.parallel.denoiser import ShardedDenoiser
from stillframe.backbones.parallel.group import Group
from stillframe.backbones.parallel.messages import (
    Begin,
    Commit,
    End,
    Fuse,
    Mask,
    Open,
    Prompt,
    Rewind,
    Run,
    RunFused,
    Skip,
    Stop,
    StoredRows,
)
from stillframe.backbones.wan import WanDenoiser
from stillframe.errors import ModelError
from stillframe.tokens.grid import Plan
from stillframe.turns import model_turn

__all__ = ["ParallelDenoiser"]

_NOTHING = Bank(torch.empty(0), torch.empty(0))


class _Leader:
    """Tells the others what to do, and what is no longer needed."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._numbers = count()
        self._gone: deque[int] = deque()

    def number(self) -> int:
        """A number for a stream or prompt."""
        return next(self._numbers)

    def follow(self, of: object, number: int) -> None:
        """Have the others forget what has a number when it is no more."""
        weakref.finalize(of, self._gone.append, number).atexit = False

    def tell(self, message: Any) -> None:
        """Send a message, and the numbers that are free since the one before."""
        # things end at any time, in any thread
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        self.group.tell((message, gone))


@dataclass(frozen=True, eq=False)
class _NumberedText(TextCache):
    """A prompt that all processes have."""

    number: int = -1


class _LeadingAttention(ShardedAttention):
    """Self-attention of a stream's blocks, which the other processes repeat."""

    def __init__(
        self,
        leader: _Leader,
        denoiser: WanDenoiser,
        cache: KeyValueCache,
        recovery: Provides,
        position_limit: int,
        context_sink: bool,
    ) -> None:
        super().__init__(
            leader.group, cache, denoiser.rotary, recovery, position_limit, context_sink
        )
        self._leader, self.number = leader, leader.number()
        leader.follow(self, self.number)
        self._store, self._known = 0, weakref.ref(recovery)
        kind = cache.keys(0).dtype, cache.packed, cache.sink_average
        given = position_limit, context_sink, cache.memory.place.captures
        leader.tell(Open(self.number, cache.shape, *kind, *given))

    def begin_block(self, plan: Plan) -> None:
        """See `BlockAttention.begin_block`.

        Raises:
            ValueError: the recovery takes keys from a store that the other processes cannot have,
                or the method merges tokens, which would be compared with those of others.
        """
        if self.merger is not None:
            raise ValueError(
                f"a method that merges tokens cannot be run by {self.group.size} processes"
            )
        super().begin_block(plan)
        self._leader.tell(self.told(plan, self._denoising))

    def told(self, plan: Plan, reuse: Reuse) -> Begin:
        """What the others have to know of a block.

        Raises:
            ValueError: see `begin_block`.
        """
        if self._known() is not self.recovery:
            self._store, self._known = self._store + 1, weakref.ref(self.recovery)
        keys, values = map(self._stored, reuse.bank)
        block = self._mask_of(plan), self._store, keys, values, reuse._replace(bank=_NOTHING)
        return Begin(self.number, *block)

    def _mask_of(self, plan: Plan) -> Mask:
        return Mask(plan.keep, plan.origin, self.recovery.complete)

    def _stored(self, x: Tensor) -> StoredRows:
        found = StoredRows.of(x, self.cache.memory.place, self.recovery.memory.place)
        if found is None:
            raise ValueError(
                f"{type(self.recovery).__name__} keeps keys and values in a store of its own "
                f"making, which {self.group.size} processes cannot share: RecoverySetup.zeros "
                f"makes one that they can"
            )
        return found

    def end_block(self) -> None:
        """See `BlockAttention.end_block`."""
        self._leader.tell(End(self.number))
        super().end_block()

    def skip_block(self, plan: Plan) -> None:
        """See `BlockAttention.skip_block`."""
        self._leader.tell(Skip(self.number, self._mask_of(plan)))
        super().skip_block(plan)

    def rewind(self, blocks: int) -> None:
        """See `BlockAttention.rewind`."""
        self._leader.tell(Rewind(self.number, blocks))
        super().rewind(blocks)


class ParallelDenoiser(ShardedDenoiser):
    """A transformer that several processes run together, in the one that leads.

    Each of the others is at `follow` with the same weights.

    Args:
        transformer, group: see `ShardedDenoiser`.

    Raises:
        ModelError: see `ShardedDenoiser`.
    """

    def __init__(self, transformer: WanTransformer3DModel, group: Group) -> None:
        super().__init__(transformer, group)
        self._leader = _Leader(group)
        self._first: int | None = None

    def stop(self) -> None:
        """Let the other processes end."""
        self._leader.tell(Stop())

    def block_attention(
        self, cache: KeyValueCache, recovery: Provides, position_limit: int, context_sink: bool
    ) -> BlockAttention:
        """See `Backbone.block_attention`."""
        return _LeadingAttention(self._leader, self, cache, recovery, position_limit, context_sink)

    def fused(self, attention: BlockAttention, *, fp8: bool) -> FusedPasses | None:
        """See `Backbone.fused`; for a block whose tokens can be divided among the processes."""
        shape, size = attention.cache.shape, self.group.size
        if shape.batch != 1 or shape.grid.tokens % size or self._unsupported():
            return None
        assert isinstance(attention, _LeadingAttention)
        leader = self._leader

        def begin(plan: Plan, reuse: Reuse, text: TextCache, inputs: BlockInputs) -> None:
            assert isinstance(text, _NumberedText)
            leader.tell(RunFused(attention.told(plan, reuse), text.number, inputs))

        def commit() -> None:
            leader.tell(Commit(attention.number))

        leader.tell(Fuse(attention.number, fp8))
        told = {"on_begin": begin, "on_commit": commit}
        return self.blocks(attention, fp8=fp8, **told)

    def revision(self, *, read: bool = True) -> int:
        """See `Backbone.revision`.

        Raises:
            ModelError: weights have changed, in this process alone.
        """
        now = super().revision(read=read)
        if self._first is None:
            self._first = now
        if now != self._first:
            raise ModelError(
                f"weights have changed in 1 of {self.group.size} processes of the stream: "
                f"change them before it begins"
            )
        return now

    def text(self, embeds: Tensor) -> TextCache:
        """See `Backbone.text`; every process projects the prompt itself, which is exact and takes
        less than sending what comes of it."""
        made = super().text(embeds)
        number = self._leader.number()
        text = _NumberedText(made.keys, made.values, made.embeds, made.revision, number)
        self._leader.follow(text, number)
        with model_turn(self.transformer):
            self._leader.tell(Prompt(number, text.embeds))
        return text

    def __call__(
        self, tokens: Tensor, timestep: Tensor, text: TextCache, block: BlockAttention
    ) -> Tensor:
        """See `Backbone.__call__`."""
        assert isinstance(block, _LeadingAttention)
        assert isinstance(text, _NumberedText)
        group = self.group
        parts = slices(tokens, group.size)
        size = tuple(parts.shape[1:])
        told = Run(block.number, block.step, text.number, timestep, size, parts.dtype)
        self._leader.tell(told)
        own = group.scatter(parts, size, parts.dtype)
        found = group.gather(super().__call__(own, timestep, text, block))
        assert found is not None
        return joined(found, tokens.shape[1])
