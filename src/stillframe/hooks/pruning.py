"""From a clip or a mask to a plan: which tokens are computed, which frame stands for the others.

All frames of a stock pipeline are denoised at once, so a token may be reused from a frame before or
after its own. Of the frames at a place as few as possible are computed (the greedy choice of a set
cover): that which stands for most of what is left, again and again, until every frame looks like
one that is computed, by the measures and the tolerance of `detection.pixels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.pixels import clip_change
from stillframe.errors import InputError

__all__ = [
    "Clip",
    "ClipPlan",
    "Geometry",
    "Plans",
    "choose_providers",
    "examine",
    "latent_frames",
    "plan_mask",
]


@dataclass(frozen=True)
class Geometry:
    """How a pipeline cuts a video into tokens.

    Attributes:
        temporal: pixel frames of a latent frame.
        single: whether the first latent frame has one pixel frame only.
        pixels: side of a token in pixels.
        patch: side of a token in latent cells.
    """

    temporal: int
    single: bool
    pixels: int
    patch: int

    def length(self, frames: int) -> int:
        """Latent frames of so many pixel frames, an incomplete one not counted."""
        return (frames - self.single) // self.temporal + self.single

    def pixel_frames(self, latent: int) -> slice:
        """The pixel frames of a latent frame."""
        end = (latent + 1) * self.temporal
        missing = self.temporal - 1 if self.single else 0
        return slice(max(0, end - self.temporal - missing), end - missing)


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """Which tokens of a clip of F latent frames of h x w tokens are computed.

    Attributes:
        keep: (F, h, w) bool, true = compute.
        provider: (F, h, w) int64: the frame that stands for a token, at the same place; its own
            where it is computed.
    """

    keep: Tensor
    provider: Tensor

    @property
    def everything(self) -> bool:
        """Whether no token is pruned."""
        return self.pruned.numel() == 0

    @property
    def tokens(self) -> int:
        """T, tokens of the clip."""
        return self.keep.numel()

    @property
    def kept_share(self) -> float:
        """Share of tokens that are computed, 0 to 1."""
        return len(self.kept) / self.tokens

    @cached_property
    def kept(self) -> Tensor:
        """(K,) int64: tokens that are computed, frame after frame, row after row."""
        return self.keep.flatten().nonzero().squeeze(1)

    @cached_property
    def pruned(self) -> Tensor:
        """(T - K,) int64: the others."""
        return (~self.keep).flatten().nonzero().squeeze(1)

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of every frame that are computed."""
        counts: list[int] = self.keep.flatten(1).sum(1).tolist()
        return counts

    @cached_property
    def rows(self) -> Tensor:
        """(T,) int64: which of the computed tokens stands for a token."""
        rank = (self.keep.flatten().cumsum(0) - 1).view_as(self.keep)
        return rank.gather(0, self.provider).flatten()

    def after(self, frames: int) -> ClipPlan:
        """The same behind so many frames that are computed."""
        if not frames:
            return self
        first = torch.arange(frames, device=self.keep.device).view(-1, 1, 1)
        return ClipPlan(
            F.pad(self.keep, (0, 0, 0, 0, frames, 0), value=True),
            torch.cat([first.expand(-1, *self.keep.shape[1:]), self.provider + frames]),
        )

    def to(self, device: torch.device) -> ClipPlan:
        """The same on a device."""
        if self.keep.device == device:
            return self
        return ClipPlan(self.keep.to(device), self.provider.to(device))


def choose_providers(
    change: Tensor, given: Tensor | None = None, computed: Tensor | None = None
) -> ClipPlan:
    """The plan with few computed frames at every place in which no reuse changes more than 1.

    Args:
        change: (F, F, h, w), see `clip_change`.
        given: (F,) bool: frames that are not denoised. They are computed, and stand for no others.
        computed: (F, h, w) bool: tokens that are computed in any case, and stand for what they can.
    """
    frames = len(change)
    fits = change <= 1
    if given is not None:
        fits[given], fits[:, given] = False, False
    own = torch.arange(frames, device=change.device)
    fits[own, own] = True
    keep = torch.zeros_like(fits[0]) if computed is None else computed.clone()
    waiting = ~(fits & keep.unsqueeze(1)).any(0)
    while bool(waiting.any()):
        best = (fits & waiting).sum(1).argmax(0, keepdim=True)
        # at places where nothing is left to stand for, the choice means nothing
        chosen = torch.zeros_like(keep).scatter(0, best, True) & waiting.any(0)
        keep |= chosen
        waiting &= ~(fits & chosen.unsqueeze(1)).any(0)
    return _nearest(keep, change.masked_fill(~fits, float("inf")))


def _nearest(keep: Tensor, cost: Tensor) -> ClipPlan:
    """Every pruned token by the computed frame of least cost (F, F, h, w) from its own."""
    provider = cost.masked_fill(~keep.unsqueeze(1), float("inf")).argmin(0)
    own = torch.arange(len(keep), device=keep.device).view(-1, 1, 1)
    return ClipPlan(keep, torch.where(keep, own, provider))


def plan_mask(keep: Tensor, change: Tensor | None = None, given: Tensor | None = None) -> ClipPlan:
    """The plan of a user's mask: a pruned token is provided by what it is most like, or, if the
    clip is not known, by what is nearest in time.

    Args:
        keep: (F, h, w) bool, true = compute.
        change: (F, F, h, w), see `clip_change`.
        given: see `choose_providers`.

    Raises:
        InputError: at some place no frame is computed that could stand for the others.
    """
    time = torch.arange(len(keep), device=keep.device)
    if change is None:
        change = (time.unsqueeze(1) - time).abs().view(len(keep), -1, 1, 1).float()
    cost = change.expand(-1, -1, *keep.shape[1:])
    others = keep
    if given is not None:
        keep = keep | given.view(-1, 1, 1)
        cost = cost.masked_fill(given.view(-1, 1, 1, 1), float("inf"))
        others = keep[~given]
    empty = ~others.any(0)
    if bool(empty.any()):
        row, column = empty.nonzero()[0].tolist()
        raise InputError(
            f"the mask computes no frame at {int(empty.sum())} of {empty.numel()} places, the "
            f"first of them row {row}, column {column}: each needs one that stands for the others"
        )
    return _nearest(keep, cost)


@dataclass(frozen=True, eq=False)
class Clip:
    """What plans of a clip are made from, at least one of the two.

    Attributes:
        change: (F, F, h, w), see `clip_change`.
        mask: (F, h, w) bool, true = compute.
    """

    change: Tensor | None
    mask: Tensor | None

    def plan(self, given: Tensor | None = None) -> ClipPlan:
        """The plan; for ``given`` see `choose_providers`.

        Raises:
            InputError: see `plan_mask`.
        """
        if self.mask is not None:
            return plan_mask(self.mask, self.change, given)
        assert self.change is not None
        return choose_providers(self.change, given)

    def part(self, plan: ClipPlan, frames: range) -> ClipPlan:
        """The plan of some frames: what is computed in the clip's is, and where nothing of that is
        among them, what the clip compares has others stand for them."""
        assert self.change is not None
        at = slice(frames.start, frames.stop)
        return choose_providers(self.change[at, at], computed=plan.keep[at])

    def coarser(self, side: int) -> Clip:
        """Of tokens so many times as large a side: each changes as the most changed of its parts,
        and is computed if one of them is."""
        parts = (None if x is None else x.float() for x in (self.change, self.mask))
        change, mask = (None if x is None else F.max_pool2d(x, side) for x in parts)
        return Clip(change, None if mask is None else mask > 0)


class Plans:
    """Plans of one clip as a denoiser is called with it, each made once.

    Args:
        clip: see `Clip`.
        plan: of it.
        leading: latent frames that the pipeline puts in front of it.
        device: of the denoiser.
    """

    def __init__(self, clip: Clip, plan: ClipPlan, leading: int, device: torch.device) -> None:
        self._sides = {1: (clip, plan)}
        self._leading, self._device = leading, device
        self._made: dict[tuple[range | None, int], ClipPlan] = {}

    def of(self, span: range | None = None, side: int = 1) -> ClipPlan:
        """The plan of some frames of the clip, or of all, with what is in front of them, in tokens
        so many times as large a side."""
        if (span, side) not in self._made:
            if side not in self._sides:
                coarser = self._sides[1][0].coarser(side)
                self._sides[side] = coarser, coarser.plan()
            clip, plan = self._sides[side]
            plan = plan if span is None else clip.part(plan, span)
            self._made[span, side] = plan.after(self._leading).to(self._device)
        return self._made[span, side]

    def forget_parts(self) -> None:
        """Forget the plans of some frames."""
        self._made = {at: plan for at, plan in self._made.items() if at[0] is None}


def latent_frames(video: Tensor, geometry: Geometry) -> Tensor:
    """The pixel frames of every latent frame, (F, t, 3, H, W) of (T, 3, H, W); a first one of a
    single frame is repeated."""
    parts = [video[geometry.pixel_frames(n)] for n in range(geometry.length(len(video)))]
    return torch.stack([part.expand(geometry.temporal, -1, -1, -1) for part in parts])


def examine(
    video: Tensor | None, mask: Any, geometry: Geometry, tolerance: float, device: torch.device
) -> Clip:
    """Compare the frames of a video, and check a mask.

    Args:
        video: (T, 3, H, W) in [0, 1].
        mask: (F, h, w), true = compute; anything that becomes a tensor.
        geometry: of the pipeline.
        tolerance: grey levels; 0 lets nothing be reused but what is the same.
        device: to compare pictures on.

    Raises:
        InputError: the mask has another shape than the video.
    """
    change = keep = None
    if video is not None:
        frames, side = latent_frames(video, geometry).to(device), geometry.pixels
        change = clip_change(frames, (side, side), max(tolerance, 1e-6))
    if mask is not None:
        keep = torch.as_tensor(mask).to(device=device, dtype=torch.bool)
        if keep.ndim != 3:
            raise InputError(f"a mask has frames, rows and columns, this one has {keep.ndim} axes")
        if change is not None and keep.shape != change.shape[1:]:
            given, wanted = (" x ".join(map(str, x)) for x in (keep.shape, change.shape[1:]))
            raise InputError(
                f"the mask has {given} frames, rows and columns, the video {wanted} in the tokens "
                f"of this pipeline"
            )
    return Clip(change, keep)
