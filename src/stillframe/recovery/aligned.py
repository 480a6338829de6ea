"""Step-aligned recovery: keys and values from the previous block's same denoising pass.

Clean keys are not what a pruned token would have had: at noise level sigma the network is modulated
by the timestep, so hidden states differ from the context pass by more than noise. The previous
block's same pass has the right timestep, the right noise level, and noise independent of every
token of this block and of each other, because frame j takes frame j's (docs/method.md).

The store holds one block of keys and values a denoising pass: ``steps x layers x S x N``, bounded
whatever the length of the stream. Entries that are pruned again are left where they are, so a fill
costs nothing to keep; those that move do so as bytes, so an entry stored in FP8 is rounded once,
when it is computed, however long it stays. Every entry remembers the source patch it was computed
from; it is reused only for a source patch within the long-term bound of that, and where frame j's
is not, the latest frame that is stands in. The patch a token was last recomputed from is always
among them. It does not know how much of FP8's range a model's values need: there is no scale."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention.block import BlockAttention
from stillframe.attention.rotary import rotate
from stillframe.detection.latents import patch_distance
from stillframe.kernels.rows import FP8
from stillframe.recovery.base import Recovery, RecoverySetup, register
from stillframe.tokens.grid import Plan, Slots, put, take
from stillframe.tokens.source import SourceBlock

__all__ = ["AlignedRecovery", "provider_frames"]


def provider_frames(source: Tensor, origin: Tensor, tolerance: float, trim: float) -> Tensor:
    """Which frame of the store stands in for each token of a block.

    Args:
        source: (B, S, N, P) source patches of the block, or what they look like.
        origin: (B, S, N, P) the same of what the store's entries were computed from.
        tolerance: largest distance that counts as the same.
        trim: see `change.patch_distance`.

    Returns:
        (B, S, N) int64: frame t itself where it matches, else the latest frame that does, else the
        closest.
    """
    distance = patch_distance(source.unsqueeze(2), origin.unsqueeze(1), trim)  # B, S, S', N
    matches = distance < tolerance
    frames = source.shape[1]
    order = torch.arange(frames, device=source.device)
    latest = torch.where(matches, order.view(1, 1, -1, 1), -1).amax(2)
    fallback = torch.where(latest >= 0, latest, distance.argmin(2))
    same = matches.diagonal(dim1=1, dim2=2).transpose(1, 2)
    return torch.where(same, order.view(1, -1, 1), fallback)


@register("aligned")
class AlignedRecovery(Recovery):
    """Copies from the store of the same denoising pass, one block earlier."""

    summary = "keys and values of the previous block at the same denoising step (default)"
    compares = True

    def __init__(self, setup: RecoverySetup) -> None:
        super().__init__(setup)
        shape = setup.shape
        size = (
            setup.steps,
            shape.layers,
            shape.batch,
            shape.grid.tokens + 1,
            shape.heads,
            shape.head_dim,
        )
        # rows of FP8 move as the bytes they are: few devices can index a tensor of that format
        held = torch.uint8 if setup.store == FP8 else setup.store
        self._keys = torch.zeros(size, device=setup.device, dtype=held)
        self._values = torch.zeros_like(self._keys)
        self._origin: Tensor | None = None
        self._moved: Slots | None = None
        #: Which frame of the store stands in for each token of the block, (B, S, N); None: whole.
        self.provider: Tensor | None = None

    def entries(self, layer: int) -> tuple[Tensor, Tensor]:
        """The store's keys and values from the layer's first row on, (rows, heads*head_dim) each.

        Rows of a pass begin `rows_before` it; a batch of 1 is meant.
        """
        start = layer * self._keys.shape[2] * self._keys.shape[3]
        width = self._keys.shape[4] * self._keys.shape[5]
        return self._keys.view(-1, width)[start:], self._values.view(-1, width)[start:]

    def rows_before(self, step: int) -> int:
        """Rows of the store that come before a pass."""
        return step * self._keys[0].numel() // (self._keys.shape[4] * self._keys.shape[5])

    @property
    def nbytes(self) -> int:
        """Bytes of the store: bounded by steps, layers and block size."""
        origin = 0 if self._origin is None else self._origin.nbytes
        return self._keys.nbytes + self._values.nbytes + origin

    def observe(self, source: SourceBlock, plan: Plan) -> None:
        """Choose which entry stands in for each pruned token; note where entries come from."""
        tokens = source.tokens if source.look is None else source.look
        self.provider = None
        if self._origin is None or plan.everything:
            self._origin = tokens.clone()
            return
        provider = self.choose(tokens, self._origin)
        taken = self._origin.gather(1, provider.unsqueeze(-1).expand_as(tokens))
        self._origin = torch.where(plan.keep.unsqueeze(-1), tokens, taken)
        self.provider = provider

    def choose(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """Which frame of the store stands in for each token; see `provider_frames`."""
        return provider_frames(tokens, origin, self.setup.tolerance, self.setup.trim)

    def _moves(self, provider: Tensor, plan: Plan) -> Slots | None:
        """Slots of the pruned tokens whose entry comes from another frame, None if there are none.

        As a `Slots`, ``target`` is where an entry goes and ``index`` where it comes from.
        """
        frames, n = provider.shape[1:]
        own = torch.arange(frames, device=provider.device).view(1, -1, 1)
        moved = ((provider != own) & ~plan.keep).flatten(1)
        count = int(moved.sum(1).max())
        if not count:
            return None
        order = (~moved).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        valid = moved.gather(1, order)
        source = provider.flatten(1) * n + torch.arange(n, device=provider.device).repeat(frames)
        return Slots(source.gather(1, order).masked_fill(~valid, 0), order.masked_fill(~valid, -1))

    def begin_block(self, block: BlockAttention) -> None:
        """Look up the pruned tokens' positions once for all layers and passes."""
        pruned, provider = block.plan.pruned, self.provider
        self._moved = None if provider is None else self._moves(provider, block.plan)
        self._pruned_table = None if pruned is None else block.table[pruned.index]

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        keys, values = self._keys[step, layer], self._values[step, layer]
        kept, pruned = block.plan.kept, block.plan.pruned
        if kept is None or pruned is None or self._pruned_table is None:
            keys[:, : key.shape[1]] = self._packed(key)
            values[:, : value.shape[1]] = self._packed(value)
            block.write_own(layer, key, value)
            return
        if self._moved is not None:
            # read before the kept tokens overwrite what these copies come from
            entries = take(keys, self._moved.index), take(values, self._moved.index)
            put(keys, self._moved, entries[0])
            put(values, self._moved, entries[1])
        put(keys, kept, self._packed(key))
        put(values, kept, self._packed(value))
        block.write_own(layer, key, value)
        filled = rotate(self._unpacked(take(keys, pruned.index)), self._pruned_table)
        block.write(layer, pruned, filled, self._unpacked(take(values, pruned.index)))

    def _packed(self, x: Tensor) -> Tensor:
        """As it is stored."""
        if self.setup.store != FP8:
            return x
        # the format has no infinity: what is beyond its range would be no number at all
        most = torch.finfo(FP8).max
        return x.clamp(-most, most).to(FP8).view(torch.uint8)

    def _unpacked(self, x: Tensor) -> Tensor:
        """What was stored, as attention takes it."""
        return x.view(FP8).to(self.setup.dtype) if self.setup.store == FP8 else x
