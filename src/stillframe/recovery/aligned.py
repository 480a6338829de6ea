"""Step-aligned recovery: keys and values from the previous block's same denoising pass.

Clean keys are not what a pruned token would have had: at noise level sigma the network is modulated
by the timestep, so hidden states differ from the context pass by more than noise. The previous
block's same pass has the right timestep, the right noise level, and noise independent of every
token of this block and of each other, because frame j takes frame j's (docs/method.md).

The store holds one block of keys and values a denoising pass: ``steps x layers x S x N``, bounded
whatever the length of the stream. Entries that are pruned again are left where they are, so a fill
costs nothing to keep. Every entry remembers the source patch it was computed from; it is reused
only for a source patch within the long-term bound of that, and where frame j's is not, the latest
frame that is stands in. The patch a token was last recomputed from is always among them."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention import BlockAttention
from stillframe.change import SourceBlock, patch_distance
from stillframe.grid import Plan, Slots, put, take
from stillframe.recovery.base import Recovery, RecoverySetup, register
from stillframe.rope import rotate

__all__ = ["AlignedRecovery", "provider_frames"]


def provider_frames(source: Tensor, origin: Tensor, tolerance: float, trim: float) -> Tensor:
    """Which frame of the store stands in for each token of a block.

    Args:
        source: (B, S, N, P) source patches of the block.
        origin: (B, S, N, P) source patches the store's entries were computed from.
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
        self._keys = torch.zeros(size, device=setup.device, dtype=setup.dtype)
        self._values = torch.zeros_like(self._keys)
        self._origin: Tensor | None = None
        self._moved: Slots | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the store: bounded by steps, layers and block size."""
        origin = 0 if self._origin is None else self._origin.nbytes
        return self._keys.nbytes + self._values.nbytes + origin

    def observe(self, source: SourceBlock, plan: Plan) -> None:
        """Choose which entry stands in for each pruned token; note where entries come from."""
        tokens = source.tokens
        self._moved = None
        if self._origin is None or plan.everything:
            self._origin = tokens.clone()
            return
        provider = provider_frames(tokens, self._origin, self.setup.tolerance, self.setup.trim)
        taken = self._origin.gather(1, provider.unsqueeze(-1).expand_as(tokens))
        self._origin = torch.where(plan.keep.unsqueeze(-1), tokens, taken)
        self._moved = self._moves(provider, plan)

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
        pruned = block.plan.pruned
        self._pruned_table = None if pruned is None else block.table[pruned.index]

    def place(
        self, block: BlockAttention, step: int, layer: int, key: Tensor, value: Tensor
    ) -> None:
        keys, values = self._keys[step, layer], self._values[step, layer]
        kept, pruned = block.plan.kept, block.plan.pruned
        if kept is None or pruned is None or self._pruned_table is None:
            keys[:, : key.shape[1]] = key
            values[:, : value.shape[1]] = value
            block.write_own(layer, key, value)
            return
        if self._moved is not None:
            # read before the kept tokens overwrite what these copies come from
            entries = take(keys, self._moved.index), take(values, self._moved.index)
            put(keys, self._moved, entries[0])
            put(values, self._moved, entries[1])
        put(keys, kept, key)
        put(values, kept, value)
        block.write_own(layer, key, value)
        filled = rotate(take(keys, pruned.index), self._pruned_table)
        block.write(layer, pruned, filled, take(values, pruned.index))
