"""A process that follows: it runs its share of the tokens and heads, as it is told.

It knows no source, no picture and no noise, and decides nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.backbones.base import TextCache
from stillframe.backbones.parallel.attention import ShardedAttention
from stillframe.backbones.parallel.denoiser import ShardedDenoiser
from stillframe.backbones.parallel.fused import ShardedBlocks
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
)
from stillframe.kernels.rows import FP8
from stillframe.kernels.shared import Memory, Workplace
from stillframe.tokens.grid import Plan, plan_tokens

__all__ = ["follow"]


class _ToldRecovery:
    """What stands in for pruned tokens, as the process that leads has worked it out.

    Args:
        captures: see `Workplace`.

    Attributes:
        memory: where the store lies.
        complete: see `Recovery`.
        told: of the block.
    """

    def __init__(self, captures: bool) -> None:
        self.memory = Memory(Workplace(captures))
        self._captures = captures
        self.complete = True
        self.told: Reuse | None = None
        self._store = 0

    def begin(self, block: Begin, cache: KeyValueCache) -> None:
        """Take what is told of a block."""
        if block.store != self._store:
            self._store, self.memory = block.store, Memory(Workplace(self._captures))
        places = cache.memory.place, self.memory.place, cache.keys(0).device
        bank = Bank(*(rows.at(*places) for rows in (block.keys, block.values)))
        self.told = block.reuse._replace(bank=bank)

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        """See `Recovery.reuse`."""
        assert self.told is not None
        return self.told

    def skip(self, plan: Plan) -> None:
        """Nothing: what moved is followed where it is decided what stands in for what."""


class _Follower:
    """Does what is told."""

    def __init__(self, denoiser: ShardedDenoiser, group: Group) -> None:
        self._denoiser, self._group = denoiser, group
        self._streams: dict[int, tuple[ShardedAttention, _ToldRecovery]] = {}
        self._fused: dict[int, ShardedBlocks] = {}
        self._prompts: dict[int, TextCache] = {}

    def forget(self, number: int) -> None:
        """A stream or prompt is no more."""
        self._streams.pop(number, None)
        self._fused.pop(number, None)
        self._prompts.pop(number, None)

    def do(self, told: Any) -> None:
        """One message."""
        match told:
            case Prompt(number, embeds):
                self._prompts[number] = self._denoiser.text(embeds)
            case Open():
                self._open(told)
            case Begin(number):
                plan = self._begun(told)
                self._streams[number][0].begin_block(plan)
            case Fuse(number, fp8):
                attention, _ = self._streams[number]
                self._fused[number] = self._denoiser.blocks(attention, fp8=fp8)
            case RunFused(block, prompt, inputs):
                plan = self._begun(block)
                self._fused[block.number].denoise(plan, self._prompts[prompt], inputs)
            case Commit(number):
                self._fused[number].commit()
            case Run():
                self._run(told)
            case End(number):
                self._streams[number][0].end_block()
            case Skip(number, mask):
                attention, recovery = self._streams[number]
                attention.skip_block(self._plan(recovery, mask))
            case Rewind(number, blocks):
                self._streams[number][0].rewind(blocks)

    def _open(self, told: Open) -> None:
        store = FP8 if told.packed else None
        kind = told.dtype, Memory(Workplace(told.captures)), store, told.sink_average
        cache = KeyValueCache(told.shape, self._group.device, *kind)
        recovery = _ToldRecovery(told.captures)
        given = recovery, told.position_limit, told.context_sink
        attention = ShardedAttention(self._group, cache, self._denoiser.rotary, *given)
        self._streams[told.number] = attention, recovery

    def _begun(self, block: Begin) -> Plan:
        """The plan of a block, whose recovery is told."""
        attention, recovery = self._streams[block.number]
        recovery.begin(block, attention.cache)
        return self._plan(recovery, block.mask)

    def _plan(self, recovery: _ToldRecovery, mask: Mask) -> Plan:
        recovery.complete = mask.complete
        return plan_tokens(mask.keep, mask.origin)

    def _run(self, told: Run) -> None:
        attention, _ = self._streams[told.number]
        attention.step = told.step
        own = self._group.scatter(None, told.size, told.dtype)
        text = self._prompts[told.prompt]
        self._group.gather(self._denoiser(own, told.timestep, text, attention))


@torch.inference_mode()
def follow(transformer: WanTransformer3DModel, group: Group) -> None:
    """Work for the process that leads until it says that there is nothing more to do.

    Args:
        transformer: with the same weights as in that process.
        group: the processes.

    Raises:
        ModelError: see `ShardedDenoiser`.
        WorkerError: another process has gone.
    """
    denoiser = ShardedDenoiser(transformer, group)
    follower = _Follower(denoiser, group)
    with denoiser.attached():
        while True:
            told, gone = group.hear()
            for number in gone:
                follower.forget(number)
            if isinstance(told, Stop):
                return
            follower.do(told)
