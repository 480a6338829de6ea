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
        origin: (B, S, N) int64: the place in the latent frame before that a token's content comes
            from, its own where it is computed or did not move; None: nothing moved.
    """

    keep: Tensor
    kept: Slots | None
    counts: tuple[int, ...]
    origin: Tensor | None = None

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
        return predecessor_rows(self.keep, self.origin)

    @cached_property
    def traced(self) -> Tensor:
        """(B, S, N) int64: the place in the last frame before the block that a token's content
        stood at, followed through all frames between, whatever was computed in them."""
        place = torch.arange(self.keep.shape[2], device=self.keep.device)
        if self.origin is None:
            return place.expand(self.keep.shape)
        places = place.expand(len(self.keep), -1)
        traced = []
        for origin in self.origin.unbind(1):
            places = places.gather(1, origin)
            traced.append(places)
        return torch.stack(traced, 1)

    @cached_property
    def traced_from_last(self) -> Tensor | None:
        """(B, S, N) int64: the place in each of the block's frames that the content of a token of
        its last frame stood at; None: nothing moved."""
        if self.origin is None:
            return None
        place = torch.arange(self.keep.shape[2], device=self.keep.device)
        places = [place.expand(len(self.keep), -1)]
        for origin in self.origin[:, 1:].flip(1).unbind(1):
            places.insert(0, origin.gather(1, places[0]))
        return torch.stack(places, 1)

    def scattered(self, own: Tensor) -> Tensor:
        """Computed tokens' ``own`` (B, K, ...), K > 0, at their slots: (B, S*N, ...), else zero."""
        if self.kept is None:
            return own
        rows = self.rows.flatten(1)
        absent = (rows < 0).view(*rows.shape, *(1,) * (own.ndim - 2))
        return take(own, rows.clamp(min=0)).masked_fill(absent, 0)


def predecessor_rows(keep: Tensor, origin: Tensor | None = None) -> Tensor:
    """For each slot, the row that provides its value.

    Args:
        keep: (B, S, N) bool.
        origin: see `Plan.origin`.

    Returns:
        (B, S*N) int64 into ``[N rows of the previous frame | S*N rows of this block]``: a kept
        token is its own provider, a pruned one takes the latest kept before it, else the previous
        frame's; before it is where its content was.
    """
    frames, tokens = keep.shape[1:]
    if origin is not None:
        return _displaced_rows(keep, origin)
    t = torch.arange(1, frames + 1, device=keep.device).view(1, -1, 1)
    latest = torch.where(keep, t, 0).cummax(dim=1).values
    return (latest * tokens + torch.arange(tokens, device=keep.device)).flatten(1)


def _displaced_rows(keep: Tensor, origin: Tensor) -> Tensor:
    """`predecessor_rows` frame by frame, for tokens that may come from elsewhere."""
    tokens = keep.shape[2]
    own = torch.arange(tokens, device=keep.device)
    rows = [own.expand(len(keep), -1)]
    for t in range(keep.shape[1]):
        own = own + tokens
        rows.append(torch.where(keep[:, t], own, rows[-1].gather(1, origin[:, t])))
    return torch.cat(rows[1:], 1)


def plan_tokens(keep: Tensor, origin: Tensor | None = None) -> Plan:
    """Turn a keep mask into a `Plan`; costs one host synchronisation, for the counts.

    Args:
        keep: (B, S, N) bool; true = compute.
        origin: see `Plan.origin`; what it says of computed tokens does not count.
    """
    if origin is not None:
        own = torch.arange(keep.shape[2], device=keep.device)
        origin = torch.where(keep, own, origin)
    rows = keep.flatten(1)
    # a stable sort puts the slots of the kept first, in order; it runs while the counts are waited
    # for
    order = rows.view(torch.uint8).argsort(dim=1, descending=True, stable=True)
    if origin is None:
        counts = tuple(rows.sum(1).tolist())
    else:
        *count, moved = torch.cat([rows.sum(1), (origin != own).sum().view(1)]).tolist()
        counts, origin = tuple(count), origin if moved else None
    most, least = max(counts), min(counts)
    if least == rows.shape[1]:
        return Plan(keep, None, counts)
    kept = order[:, :most]
    if most == least:  # nothing to pad, as with a single row
        return Plan(keep, Slots(kept, kept), counts, origin)
    valid = rows.gather(1, kept)
    slots = Slots(kept.masked_fill(~valid, 0), kept.masked_fill(~valid, -1))
    return Plan(keep, slots, counts, origin)


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
