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
among them.

What moved is followed back to where it stood in each frame of the store. What it looked like there
says little, since patches cut it elsewhere; so every computed token has a number, which those that
reuse it inherit, and the entry taken is one of the token's own number. It does not know how much of
FP8's range a model's values need: there is no scale."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.detection.latents import patch_distance
from stillframe.kernels.rows import FP8
from stillframe.recovery.base import Recovery, RecoverySetup, register
from stillframe.tokens.grid import Plan, take
from stillframe.tokens.restore import restore
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
    return _preferred(distance < tolerance, distance)


def _preferred(matches: Tensor, distance: Tensor) -> Tensor:
    """(B, S, S', N) each: of every token from every frame of the store -> (B, S, N): frame t itself
    where it matches, else the latest frame that does, else the closest."""
    order = torch.arange(matches.shape[1], device=matches.device)
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
        displaced: (B, S, N) bool: tokens whose content stood elsewhere in some frame of the store;
            None: none did.
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
        self.bank = Bank(*(setup.zeros(name, size, dtype) for name in ("keys", "values")))
        self.provider: Tensor | None = None
        self.displaced: Tensor | None = None
        # (B, S, N, M) what the store's entries were computed from, and the row of the store that
        # each token takes
        self._origin: Tensor | None = None
        self._taken: Tensor | None = None
        # numbers of the tokens that the store's entries were computed as, (B, S, N), and of those
        # that the last frame's tokens were, (B, N)
        self._entries: Tensor | None = None
        self._last: Tensor | None = None
        # (B, S, N) where each place's content stood in the frames of the store; None: there
        self._paths: Tensor | None = None
        self._frames = 0

    @property
    def store_rows(self) -> int:
        """Rows of the store in a pass and layer."""
        return self.setup.shape.grid.tokens + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the store: bounded by steps, layers and block size."""
        known = (*self.bank, self._origin, self._entries, self._last, self._paths)
        return sum(x.nbytes for x in known if x is not None)

    @property
    def computed(self) -> Tensor | None:
        """(B, S, N) int64: number of the frame that each entry of the store was computed in, of
        those seen so far; None before the first."""
        return None if self._entries is None else self._entries // self._entries.shape[2]

    def observe(self, source: SourceBlock, plan: Plan) -> None:
        """Choose which entry stands in for each pruned token; note where entries come from."""
        tokens = source.tokens if source.look is None else source.look
        frames, n = plan.keep.shape[1:]
        numbers = torch.arange(frames * n, device=tokens.device).view(frames, n)
        numbers = (numbers + self._frames * n).expand(plan.keep.shape)
        self._frames += frames
        self.provider = self.displaced = None
        if self._origin is None or self._entries is None or self._last is None or plan.everything:
            self._origin, self._entries = tokens.clone(), numbers.clone()
            self._last = self._entries[:, -1].clone()
        else:
            identity = restore(numbers.flatten(1), self._last, plan.provider).view_as(plan.keep)
            self._choose(plan, tokens, self._origin, self._entries, identity)
            self._origin = self._stored(plan.keep, tokens, self._origin)
            self._entries = self._stored(plan.keep, numbers, self._entries)
            self._last = identity[:, -1].clone()
        self._paths = plan.traced_from_last

    def skip(self, plan: Plan) -> None:
        """Follow what moves through a block that is skipped; the store stays as it is."""
        if plan.origin is None or self._last is None:
            return
        traced = plan.traced[:, -1]
        self._last = self._last.gather(1, traced)
        paths = traced.unsqueeze(1).expand(plan.keep.shape)
        self._paths = paths.clone() if self._paths is None else self._paths.gather(2, paths)

    def _choose(
        self, plan: Plan, tokens: Tensor, origin: Tensor, entries: Tensor, identity: Tensor
    ) -> None:
        """Decide `provider`, `displaced` and the row of the store that each token takes.

        Args:
            plan: of the block.
            tokens: (B, S, N, M) what it looks like.
            origin: (B, S, N, M) what the store's entries were computed from.
            entries: (B, S, N) the numbers of the tokens that they were computed as.
            identity: (B, S, N) the same of the block's tokens.
        """
        frames, n = plan.keep.shape[1:]
        provider, place = self.choose(tokens, origin), torch.arange(n, device=tokens.device)
        if plan.origin is None and self._paths is None:
            self.provider, self._taken = provider, provider * n + place
            return
        traced, paths = plan.traced.flatten(1), self._paths
        if paths is None:
            paths = place.expand(plan.keep.shape)
        # B, S, S', N: where a token's content stood in each frame of the store, and the row there
        places = torch.stack([x.gather(1, traced).view_as(plan.keep) for x in paths.unbind(1)], 2)
        rows = places + n * torch.arange(frames, device=tokens.device).view(-1, 1)
        there = take(origin.flatten(1, 2), rows.flatten(1)).unflatten(1, rows.shape[1:])
        same = entries.flatten(1).gather(1, rows.flatten(1)).view_as(rows) == identity.unsqueeze(2)
        followed = _preferred(same, patch_distance(tokens.unsqueeze(2), there, self.setup.trim))
        self.displaced = (places != place).any(2)
        self.provider = torch.where(self.displaced, followed, provider)
        self._taken = rows.gather(2, self.provider.unsqueeze(2)).squeeze(2)

    def _stored(self, keep: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """What is known (B, S, N, ...) of the store's entries once the block's stand in it."""
        assert self._taken is not None
        taken = take(old.flatten(1, 2), self._taken.flatten(1)).view_as(old)
        return torch.where(keep.view(*keep.shape, *(1,) * (new.ndim - 3)), new, taken)

    def choose(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """Which frame of the store stands in for each token; see `provider_frames`."""
        return provider_frames(tokens, origin, self.setup.tolerance, self.setup.trim)

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        """The entries chosen; those computed now, or taken from another slot, become a slot's."""
        _, frames, n = plan.keep.shape
        own = torch.arange(frames * n, device=plan.keep.device).view(frames, n)
        own = own.expand(plan.keep.shape)
        if self.provider is None or self._taken is None:
            return Reuse(plan.rows, own, self.bank, own)
        changed = plan.keep | (self._taken != own)
        out, moved = torch.where(changed, own, -1), self.displaced is not None
        return Reuse(plan.rows, self._taken, self.bank, out, moved)
