"""Step-aligned recovery: keys and values from the previous block's same denoising pass.

Clean keys are not what a pruned token would have had: at noise level sigma the network is modulated
by the timestep, so hidden states differ from the context pass by more than noise. The previous
block's same pass has the right timestep, the right noise level, and noise independent of every
token of this block and of each other, because frame j takes frame j's (docs/method.md).

The store holds one block of keys and values a denoising pass: ``steps x layers x S x N``, bounded
whatever the length of the stream. Entries that are pruned again are left where they are, so a fill
costs nothing to keep; those that move lose nothing, so an entry stored in FP8 is rounded once, when
it is computed, however long it stays. Every entry remembers the source patch it was computed
from; it is reused only for a source patch within the long-term bound of that, and where frame j's
is not, the latest frame that is stands in. The patch a token was last recomputed from is always
among them. It does not know how much of FP8's range a model's values need: there is no scale."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.detection.latents import patch_distance
from stillframe.kernels.rows import FP8
from stillframe.recovery.base import Recovery, RecoverySetup, register
from stillframe.tokens.grid import Plan
from stillframe.tokens.source import SourceBlock

__all__ = ["AlignedRecovery", "provider_frames"]


def provider_frames(source: Tensor, origin: Tensor, tolerance: float, trim: float) -> Tensor:
    """Which frame of the store stands in for each token of a block.

    Args:
        source: (B, S, N, P) source patches of the block, or what they look like.
        origin: (B, S, N, P) the same of what the store's entries were computed from.
        tolerance: largest distance that counts as the same.
        trim: see `latents.patch_distance`.

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
    """Copies from the store of the same denoising pass, one block earlier.

    Attributes:
        bank: the store, a row for every slot of a block (and scrap).
        provider: which frame of the store stands in for each token of the block, (B, S, N); None:
            the block is whole.
    """

    summary = "keys and values of the previous block at the same denoising step (default)"
    compares = True

    def __init__(self, setup: RecoverySetup) -> None:
        super().__init__(setup)
        shape = setup.shape
        size = (
            setup.steps,
            shape.layers,
            shape.batch,
            self.store_rows,
            shape.heads,
            shape.head_dim,
        )
        # rows of FP8 move as the bytes they are: few devices can index a tensor of that format
        dtype = torch.uint8 if setup.store == FP8 else setup.store
        keys = torch.zeros(size, device=setup.device, dtype=dtype)
        self.bank = Bank(keys, torch.zeros_like(keys))
        self._origin: Tensor | None = None
        self.provider: Tensor | None = None

    @property
    def store_rows(self) -> int:
        """Rows of the store in a pass and layer."""
        return self.setup.shape.grid.tokens + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the store: bounded by steps, layers and block size."""
        origin = 0 if self._origin is None else self._origin.nbytes
        return self.bank.keys.nbytes + self.bank.values.nbytes + origin

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

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        """The entries chosen; those computed now, or taken from another frame, become a slot's."""
        _, frames, n = plan.keep.shape
        own = torch.arange(frames * n, device=plan.keep.device).view(frames, n)
        own = own.expand(plan.keep.shape)
        if self.provider is None:
            return Reuse(plan.rows, own, self.bank, own)
        old = self.provider * n + own[:, :1]
        changed = plan.keep | (old != own)
        return Reuse(plan.rows, old, self.bank, torch.where(changed, own, -1))
