"""The token grid of a block and the plan of which tokens to compute.

A token is a 1 x p x p patch of the latents; a block of S latent frames of h x w tokens has S*N
slots, N = h*w, frame after frame, row after row. Pure shape arithmetic: nothing here knows about
models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Grid",
    "Plan",
    "Slots",
    "patchify",
    "plan_tokens",
    "predecessor_rows",
    "put",
    "take",
    "unpatchify",
]


@dataclass(frozen=True)
class Grid:
    """Shape of a block in tokens: ``frames`` (S) x ``height`` (h) x ``width`` (w)."""

    frames: int
    height: int
    width: int

    @property
    def frame_tokens(self) -> int:
        """N, tokens of one latent frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """S*N, tokens of a block."""
        return self.frames * self.frame_tokens


class Slots(NamedTuple):
    """Slot numbers of some of a block's tokens, equally many in every batch row.

    Attributes:
        index: (B, K) int64, in order; rows with fewer tokens are padded with slot 0.
        target: the same with -1 for the padding, which `put` writes to a buffer's last row.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    target: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Which of a block's tokens are computed; made by `plan_tokens`.

    Attributes:
        keep: (B, S, N) bool; true = compute.
        kept: the slots of the computed tokens; None when everything is kept.
        counts: kept tokens of each batch row.
    """

    keep: Tensor
    kept: Slots | None
    counts: tuple[int, ...]

    @property
    def everything(self) -> bool:
        """Whether no token is pruned."""
        return self.kept is None

    @property
    def nothing(self) -> bool:
        """Whether every token is pruned."""
        return max(self.counts) == 0

    @property
    def kept_share(self) -> float:
        """Mean share of kept tokens, 0 to 1."""
        return sum(self.counts) / self.keep.numel()

    @cached_property
    def rows(self) -> Tensor:
        """(B, S, N) int64: which of the computed tokens a slot's is, in order; -1 if pruned."""
        order = self.keep.flatten(1).cumsum(1).view_as(self.keep) - 1
        return order.masked_fill(~self.keep, -1)

    @cached_property
    def provider(self) -> Tensor:
        """(B, S*N) int64: the row that a slot's value is reused from, see `predecessor_rows`."""
        return predecessor_rows(self.keep)

    def scattered(self, own: Tensor) -> Tensor:
        """Computed tokens' ``own`` (B, K, ...), K > 0, at their slots: (B, S*N, ...), else zero."""
        if self.kept is None:
            return own
        rows = self.rows.flatten(1)
        absent = (rows < 0).view(*rows.shape, *(1,) * (own.ndim - 2))
        return take(own, rows.clamp(min=0)).masked_fill(absent, 0)


def predecessor_rows(keep: Tensor) -> Tensor:
    """For each slot, the row that provides its value.

    Args:
        keep: (B, S, N) bool.

    Returns:
        (B, S*N) int64 into ``[N rows of the previous frame | S*N rows of this block]``: a kept
        token is its own provider, a pruned one takes the latest kept before it, else the previous
        frame's.
    """
    frames, tokens = keep.shape[1:]
    t = torch.arange(1, frames + 1, device=keep.device).view(1, -1, 1)
    latest = torch.where(keep, t, 0).cummax(dim=1).values
    return (latest * tokens + torch.arange(tokens, device=keep.device)).flatten(1)


def plan_tokens(keep: Tensor) -> Plan:
    """Turn a keep mask (B, S, N) into a `Plan`; costs one host synchronisation, for the counts."""
    rows = keep.flatten(1)
    # a stable sort puts the slots of the kept first, in order; it runs while the counts are waited
    # for
    order = rows.view(torch.uint8).argsort(dim=1, descending=True, stable=True)
    counts = tuple(rows.sum(1).tolist())
    most, least = max(counts), min(counts)
    if least == rows.shape[1]:
        return Plan(keep, None, counts)
    kept = order[:, :most]
    if most == least:  # nothing to pad, as with a single row
        return Plan(keep, Slots(kept, kept), counts)
    valid = rows.gather(1, kept)
    return Plan(keep, Slots(kept.masked_fill(~valid, 0), kept.masked_fill(~valid, -1)), counts)


def put(buffer: Tensor, slots: Slots, x: Tensor) -> None:
    """Write ``x`` (B, K, ...) to rows ``slots`` of the contiguous ``buffer`` (B, R, ...), in place.

    The last of the R rows is scrap: padding goes there, so nobody may read it.
    """
    rows = _flat_rows(slots.target % buffer.shape[1], buffer.shape[1])
    buffer.view(-1, *buffer.shape[2:]).index_copy_(0, rows, x.flatten(0, 1))


def take(buffer: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of ``buffer`` (B, R, ...): (B, K, ...)."""
    rows = _flat_rows(index, buffer.shape[1])
    return buffer.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)


def _flat_rows(index: Tensor, rows: int) -> Tensor:
    """Rows (B*K) of ``index`` (B, K) in a (B, rows, ...) tensor flattened to (B*rows, ...)."""
    batch = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return (index + batch * rows).flatten()


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Cut latents (B, C, F, H, W) into tokens (B, F*N, p*p*C), channels last within a token.

    Raises:
        ValueError: if H or W is not a multiple of ``patch``.
    """
    b, c, f, height, width = latents.shape
    if height % patch or width % patch:
        raise ValueError(f"latents of {height}x{width} do not divide into {patch}x{patch} patches")
    h, w = height // patch, width // patch
    tokens = latents.reshape(b, c, f, h, patch, w, patch).permute(0, 2, 3, 5, 4, 6, 1)
    return tokens.reshape(b, f * h * w, patch * patch * c)


def unpatchify(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """Undo `patchify`: (B, S*N, p*p*C) -> (B, C, S, h*p, w*p)."""
    b = tokens.shape[0]
    x = tokens.reshape(b, grid.frames, grid.height, grid.width, patch, patch, -1)
    x = x.permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(b, -1, grid.frames, grid.height * patch, grid.width * patch)
