"""Change detection: which latent patches moved, from source latents alone.

A patch is *unchanged* if it differs little from the frame before (short-term, ``tau1``) and little
from the source its cached keys and values were computed from (long-term, ``tau2``). Decisions on
single patches glitch, so both distances are smoothed over neighbourhoods and the mask is cleaned by
morphology. Every filter is causal - frame t looks at frames t-2..t only - so a stream and a file
give the same mask bit for bit; the detector keeps the two frames it needs between blocks.

Runs in torch on the latents' device, any batch size, without reading a value back.

Source: arXiv 2603.05811 (conditions, thresholds 0.15 / 0.30, trimmed mean, filters). Different
here: the long-term reference is the source at the moment a patch was last *recomputed* rather than
the last frame of the previous block, which also catches slow drift; and the long-term bound holds
for every single patch, whatever the filters say, so that no small object can go stale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.tokens.source import SourceBlock

__all__ = [
    "CausalMask",
    "ChangeScore",
    "MaskShape",
    "RankedMask",
    "keep_most",
    "patch_distance",
]

_HISTORY = 2  # frames that the causal filters look back
_GAUSSIAN_SIGMA = 1.5

_SMOOTHING = ("none", "median", "gaussian", "both")
_CLEANING = ("none", "open", "close", "open-close", "close-open")


@dataclass(frozen=True)
class MaskShape:
    """How distances become a mask, thresholds apart. The defaults are the papers'.

    Attributes:
        smoothing: of the distances: "median", "gaussian", "both" (the median first) or "none".
        memory: frames that the smoothing and the majority look at, the newest included, 1 to 3.
        majority: whether a place counts as moved only if most of its neighbours did.
        cleaning: of each frame of the mask: "open" drops specks, "close" fills pinholes; "none".
        dilation: frames, 1 to 3, and places a side, odd, over which what moved is spread.
        bound: single patches that differ by ``bound * tau2`` are computed whatever the filters say;
            above 1, places may show what is further than ``tau2`` from their source.

    Raises:
        ValueError: for a value that there is not.
    """

    smoothing: str = "both"
    memory: int = 3
    majority: bool = True
    cleaning: str = "open-close"
    dilation: tuple[int, int] = (3, 5)
    bound: float = 1.0

    def __post_init__(self) -> None:
        if self.smoothing not in _SMOOTHING or self.cleaning not in _CLEANING:
            raise ValueError(
                f"smoothing is one of {', '.join(_SMOOTHING)} and cleaning of "
                f"{', '.join(_CLEANING)}, got {self.smoothing!r} and {self.cleaning!r}"
            )
        frames, side = self.dilation
        most = _HISTORY + 1
        if not (1 <= self.memory <= most and 1 <= frames <= most and side % 2 == 1 <= side):
            raise ValueError(
                f"memory and dilation are 1 to {most} frames, and a dilation has an odd side, got "
                f"{self.memory} and {frames} frames and a side of {side}"
            )
        if not self.bound >= 1:
            raise ValueError(f"bound must be at least 1, got {self.bound}")


def patch_distance(a: Tensor, b: Tensor, trim: float = 0.2) -> Tensor:
    """Trimmed mean absolute difference over the last dimension.

    Args:
        a, b: (..., P), broadcastable.
        trim: share of the P absolute differences dropped at either end, 0 to < 0.5.

    Returns:
        (...) float32, in units of the latents' standard deviation.
    """
    difference = (a.float() - b.float()).abs()
    size = difference.shape[-1]
    drop = int(trim * size)
    if drop:
        difference = difference.sort(dim=-1).values[..., drop : size - drop]
    return difference.mean(dim=-1)


def keep_most(score: Tensor, rate: float) -> Tensor:
    """Keep the tokens of largest score: all but the share ``rate`` of each block.

    Args:
        score: (B, S, h, w); of equal scores the first count as larger.
        rate: 0 to below 1.

    Returns:
        bool as ``score``, ``round((1 - rate) * S*h*w)`` true in each batch row.
    """
    flat = score.flatten(1)
    count = round((1 - rate) * flat.shape[1])
    best = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view_as(score)


@dataclass
class _Lookback:
    """Prepends the last two frames seen to a block; a stream's first frame repeats itself."""

    seen: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        before = x[:, :1].expand(-1, _HISTORY, -1, -1) if self.seen is None else self.seen
        x = torch.cat([before, x], 1)
        self.seen = x[:, -_HISTORY:].clone()
        return x


def _neighbourhood(x: Tensor, memory: int = 3) -> Tensor:
    """(B, S+2, h, w) -> (9 * memory, B, S, h, w): the causal 3x3 neighbours of the latest frames,
    edges repeated."""
    frames, height, width = x.shape[1] - _HISTORY, x.shape[2], x.shape[3]
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return torch.stack(
        [
            x[:, t : t + frames, i : i + height, j : j + width]
            for t in range(3 - memory, 3)
            for i in range(3)
            for j in range(3)
        ]
    )


def _bell(*offsets: float) -> list[float]:
    """Gaussian weights at the offsets, with sum 1."""
    weights = [math.exp(-(x**2) / (2 * _GAUSSIAN_SIGMA**2)) for x in offsets]
    return [weight / sum(weights) for weight in weights]


def _blend(x: Tensor, dim: int, weights: list[float]) -> Tensor:
    """Weighted sum of as many neighbours along a dimension as there are weights."""
    length = x.shape[dim] - len(weights) + 1
    parts = [x.narrow(dim, i, length) * weight for i, weight in enumerate(weights)]
    # single sums rather than a reduction or a convolution: rounding must not depend on shapes
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _gaussian(x: Tensor, memory: int = 3) -> Tensor:
    """Causal 3x3 Gaussian over the latest frames, (B, S+2, h, w) -> (B, S, h, w), edges repeated;
    time is one-sided, the newest frame weighs most."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")[:, 3 - memory :]
    x = _blend(x, 1, _bell(*range(memory - 1, -1, -1)))
    return _blend(_blend(x, 2, _bell(-1, 0, 1)), 3, _bell(-1, 0, 1))


@dataclass
class _Smoother:
    """Causal median, then causal Gaussian, of a distance map, as far as they are wanted."""

    shape: MaskShape = field(default_factory=MaskShape)
    raw: _Lookback = field(default_factory=_Lookback)
    median: _Lookback = field(default_factory=_Lookback)

    def __call__(self, distance: Tensor) -> Tensor:
        memory = self.shape.memory
        if self.shape.smoothing in ("median", "both"):
            distance = _neighbourhood(self.raw(distance), memory).median(dim=0).values
        if self.shape.smoothing in ("gaussian", "both"):
            distance = _gaussian(self.median(distance), memory)
        return distance


def _dilate(mask: Tensor, size: int) -> Tensor:
    return F.max_pool2d(mask, size, stride=1, padding=size // 2)


def _erode(mask: Tensor, size: int) -> Tensor:
    return 1 - _dilate(1 - mask, size)


def _cleaned(mask: Tensor, cleaning: str) -> Tensor:
    """Per-frame 3x3 opening (drops specks) and closing (fills pinholes), as they are named."""
    for step in cleaning.split("-"):
        if step == "open":
            mask = _dilate(_erode(mask, 3), 3)
        elif step == "close":
            mask = _erode(_dilate(mask, 3), 3)
    return mask


def _distances(source: SourceBlock, trim: float) -> tuple[Tensor, Tensor]:
    """Short- and long-term distance of every patch of a block, (B, S, h, w) each."""
    grid = source.grid
    shape = (-1, grid.frames, grid.height, grid.width)
    before = torch.cat([source.previous.unsqueeze(1), source.tokens[:, :-1]], 1)
    short = patch_distance(source.tokens, before, trim)
    long = patch_distance(source.tokens, source.reference.unsqueeze(1), trim)
    return short.view(shape), long.view(shape)


class _Remembering:
    """A detector of this file: it depends on latents and on what it remembers of them alone."""

    @property
    def state_tensors(self) -> list[Tensor]:
        """What it remembers, see `capture.Stateful`."""
        return [part.seen for part in _lookbacks(self) if part.seen is not None]

    @state_tensors.setter
    def state_tensors(self, tensors: list[Tensor]) -> None:
        remembering = [part for part in _lookbacks(self) if part.seen is not None]
        for part, seen in zip(remembering, tensors, strict=True):
            part.seen = seen


class RankedMask(_Remembering):
    """Keep masks of a fixed share: the tokens that changed most, by the distances of `CausalMask`.

    A patch's score is the larger of its two smoothed distances, each in units of its threshold. The
    mask is cleaned no further, and nothing bounds how far a pruned patch may drift. One object a
    stream; call it once a block.

    Args:
        rate: share of a block's tokens to prune, 0 to below 1.
        tau1, tau2: what the short- and the long-term distance are measured in.
        trim: see `patch_distance`.
    """

    def __init__(self, rate: float, tau1: float, tau2: float, trim: float) -> None:
        self.rate, self.trim = rate, trim
        # distances over thresholds, both times tau1 * tau2: the order is the same, and 0 is fine
        self._weights = (tau2, tau1) if tau1 or tau2 else (1.0, 1.0)
        self._short, self._long = _Smoother(), _Smoother()

    def __call__(self, source: SourceBlock) -> Tensor:
        """Decide for one block: (B, S, h, w) bool, see `keep_most`."""
        short, long = _distances(source, self.trim)
        weight_short, weight_long = self._weights
        score = torch.maximum(self._short(short) * weight_short, self._long(long) * weight_long)
        return keep_most(score, self.rate)


class CausalMask(_Remembering):
    """Keep masks of a stream, block after block. One object a stream; call it once a block.

    Args:
        tau1: short-term threshold, in latent standard deviations.
        tau2: long-term threshold.
        trim: see `patch_distance`.
        shape: filters and morphology.
    """

    def __init__(
        self, tau1: float, tau2: float, trim: float = 0.2, shape: MaskShape | None = None
    ) -> None:
        self.tau1, self.tau2, self.trim = tau1, tau2, trim
        self.shape = shape or MaskShape()
        self._short, self._long = _Smoother(self.shape), _Smoother(self.shape)
        self._changed, self._lasting = _Lookback(), _Lookback()

    def __call__(self, source: SourceBlock) -> Tensor:
        """Decide for one block.

        Returns:
            (B, S, h, w) bool, true where the token must be computed. Wherever it is false, the
            patch differs by less than ``tau2``, times the shape's bound, both from
            ``source.reference``, whose keys and values stand in for its own, and from the source of
            what is shown in its place, which the block itself may have recomputed since.
        """
        short, long = _distances(source, self.trim)
        moved = (self._short(short) >= self.tau1) | (self._long(long) >= self.tau2)
        keep = self._clean(moved.float())
        limit = self.tau2 * self.shape.bound
        return self._bounded(keep | (long >= limit), source, limit)

    def _bounded(self, keep: Tensor, source: SourceBlock, limit: float) -> Tensor:
        """Also keep what has come to differ from its latest recomputation within the block."""
        shown = source.reference
        frames = []
        for now, frame in zip(source.tokens.unbind(1), keep.unbind(1), strict=True):
            stale = patch_distance(now, shown, self.trim) >= limit
            frame = frame | stale.view_as(frame)
            shown = torch.where(frame.flatten(1).unsqueeze(-1), now, shown)
            frames.append(frame)
        return torch.stack(frames, 1)

    def _clean(self, moved: Tensor) -> Tensor:
        """Causal majority, opening and closing, causal dilation of a 0/1 mask."""
        shape, frames = self.shape, moved.shape[1]
        if shape.majority:
            moved = _neighbourhood(self._changed(moved), shape.memory).median(dim=0).values
        lasting = self._lasting(_cleaned(moved, shape.cleaning))
        ages = range(_HISTORY + 1 - shape.dilation[0], _HISTORY + 1)
        spread = torch.stack([lasting[:, t : t + frames] for t in ages]).amax(0)
        return _dilate(spread, shape.dilation[1]) > 0.5


class ChangeScore(_Remembering):
    """How much patches changed, for whoever ranks them. One object a stream; call it once a block.

    The largest of the two smoothed distances and the long-term distance of the single patch, each
    in units of its threshold: what `CausalMask` compares to 1 before it cleans its mask.

    Args:
        tau1, tau2: thresholds, see `CausalMask`; of 0, the score counts what is above rounding.
        trim: see `patch_distance`.
    """

    def __init__(self, tau1: float, tau2: float, trim: float = 0.2) -> None:
        self.trim = trim
        self._units = max(tau1, 1e-6), max(tau2, 1e-6)
        self._short, self._long = _Smoother(), _Smoother()

    def __call__(self, source: SourceBlock) -> Tensor:
        """Score one block: (B, S, h, w) float32, at least 0."""
        short, long = _distances(source, self.trim)
        tau1, tau2 = self._units
        smoothed = torch.maximum(self._short(short) / tau1, self._long(long) / tau2)
        return torch.maximum(smoothed, long / tau2)


def _lookbacks(part: object) -> list[_Lookback]:
    """What a detector of this file remembers between blocks, in a fixed order."""
    if isinstance(part, _Lookback):
        return [part]
    if not isinstance(part, _Remembering | _Smoother):
        return []
    return [found for inner in vars(part).values() for found in _lookbacks(inner)]
