"""What is known of a block's source before its tokens are chosen."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from stillframe.tokens.grid import Grid

__all__ = ["Followed", "SourceBlock"]


class Followed(Protocol):
    """Patches that are followed where they go, see ``detection.motion``."""

    def mask(self, limit: float) -> Tensor: ...

    def score(self) -> Tensor: ...

    def changed(self) -> Tensor: ...

    def complete(self, keep: Tensor, barred: Tensor) -> Tensor: ...

    def moved(self, keep: Tensor) -> Tensor: ...


class SourceBlock(NamedTuple):
    """What a method may look at to decide which tokens of a block to compute.

    Attributes:
        tokens: (B, S, N, P) source latents of the block, in patches.
        previous: (B, N, P) source latents of the frame before it.
        reference: (B, N, P) source latents each place was last recomputed from.
        grid: S x h x w.
        pixels: (B, (S+1)*t, 3, H, W) source frames in [0, 1] of the block and of the latent frame
            before it, t to a latent frame, as they will be shown; None if only latents are at hand.
        anchor: (B, 2, 3, H, W) source pixels each place was last computed from, see
            `visible.Anchors`.
        look, look_anchor: (B, S, N, M) and (B, N, M) what patches look like, in grey levels, so
            that their root mean square difference is one that is seen.
        leniency: what a detector's limits are multiplied by.
        motion: tells which patches are like others that lay elsewhere; None: places are compared.
    """

    tokens: Tensor
    previous: Tensor
    reference: Tensor
    grid: Grid
    pixels: Tensor | None = None
    anchor: Tensor | None = None
    look: Tensor | None = None
    look_anchor: Tensor | None = None
    leniency: float = 1.0
    motion: Followed | None = None
