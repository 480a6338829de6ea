"""Other choices of what step-aligned recovery aligns to, to be measured against the one in use.

All read the same store, one block of keys and values a pass, and take an entry only for a source
patch that matches the one it was computed from. They differ after motion, where several frames of
the store match or an entry is old. They are not registered: streams do not offer them."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Reuse
from stillframe.detection.latents import patch_distance
from stillframe.kernels.rows import packed, unpacked
from stillframe.recovery.aligned import AlignedRecovery
from stillframe.recovery.base import RecoverySetup
from stillframe.tokens.grid import Plan
from stillframe.tokens.source import SourceBlock

__all__ = ["ALIGNMENTS", "AlignedToClosest", "AlignedToLast", "AlignedToNewest", "AveragedAligned"]


class AlignedToClosest(AlignedRecovery):
    """The frame of the store whose source patch is most alike."""

    def choose(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """See `AlignedRecovery.choose`."""
        return _distances(tokens, origin, self.setup.trim).argmin(2)


class AlignedToLast(AlignedRecovery):
    """The latest frame of the store that matches, for all frames of the block."""

    def choose(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """See `AlignedRecovery.choose`."""
        order = torch.arange(tokens.shape[1], device=tokens.device).view(1, -1, 1)
        return _best(tokens, origin, order.expand(tokens.shape[:3]), self.setup)


class AlignedToNewest(AlignedRecovery):
    """Of the entries that match, the one that was computed last: entries of places that are pruned
    again stay in the store, and grow old at different rates."""

    def choose(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """See `AlignedRecovery.choose`."""
        assert self.computed is not None
        return _best(tokens, origin, self.computed, self.setup)


class AveragedAligned(AlignedRecovery):
    """The mean of the last two frames of the store, where both match; else as usual."""

    _both: Tensor | None = None  # (B, S, N) bool: tokens whose place has two that match

    @property
    def store_rows(self) -> int:
        """A frame of means lies behind the block's rows."""
        return super().store_rows + self.setup.shape.grid.frame_tokens

    def observe(self, source: SourceBlock, plan: Plan) -> None:
        """Also note where the last two frames match."""
        self._both = None
        if self._origin is not None and source.tokens.shape[1] > 1:
            distance = _distances(source.tokens, self._origin, self.setup.trim)
            self._both = (distance < self.setup.tolerance)[:, :, -2:].all(2)
        super().observe(source, plan)
        if self._both is not None and self.displaced is not None:
            self._both &= ~self.displaced

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        """See `Recovery.reuse`."""
        usual = super().reuse(plan, cache)
        if plan.everything or self._both is None:
            return usual
        grid = self.setup.shape.grid
        n, size = grid.frame_tokens, grid.tokens
        means = torch.arange(size, size + n, device=plan.keep.device)
        own = torch.arange(size, device=plan.keep.device).view(-1, n)
        for entries in self.bank:
            # before this block's tokens take their places in the store, and instead of what is
            # moved with them: what stands at a slot is not what is remembered of it
            older, newer = (
                unpacked(entries[..., start : start + n, :, :], self.setup.dtype)
                for start in (size - 2 * n, size - n)
            )
            chosen = usual.old.flatten(1)[None, None, :, :, None, None]
            moved = entries[..., :size, :, :].take_along_dim(chosen, dim=3)
            entries[..., size : size + n, :, :] = packed((older + newer) / 2, entries)
            entries[..., :size, :, :] = moved
        old = torch.where(self._both, means, own)
        return usual._replace(old=old, out=torch.where(plan.keep, own, -1))


def _distances(tokens: Tensor, origin: Tensor, trim: float) -> Tensor:
    """(B, S, N, P) each -> (B, S, S', N): of every token from every frame of the store."""
    return patch_distance(tokens.unsqueeze(2), origin.unsqueeze(1), trim)


def _best(tokens: Tensor, origin: Tensor, merit: Tensor, setup: RecoverySetup) -> Tensor:
    """The matching frame of most merit (B, S', N, not negative), else the closest: (B, S, N)."""
    distance = _distances(tokens, origin, setup.trim)
    ranked = torch.where(distance < setup.tolerance, merit.unsqueeze(1), -1)
    best = ranked.max(2)
    return torch.where(best.values >= 0, best.indices, distance.argmin(2))


#: What may be aligned to, by name; the first is what `aligned` does.
ALIGNMENTS: dict[str, type[AlignedRecovery]] = {
    "same frame": AlignedRecovery,
    "last frame": AlignedToLast,
    "newest entry": AlignedToNewest,
    "closest source": AlignedToClosest,
    "mean of two": AveragedAligned,
}
