"""Warping error: how far an edit follows the motion of its source.

After Lai, Huang, Wang, Shechtman, Yumer, Yang, "Learning Blind Video Temporal Consistency", ECCV
2018. `flow.py` has the flow, the warping and the occlusion mask. The motion of the last source is
remembered: finding it takes several times as long as the rest, and many edits share a source."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, register
from stillframe.metrics.flow import ESTIMATORS, estimator, unavailable, visible, warp

__all__ = ["WarpError", "pair_error"]


@register("warp_error")
@dataclass(frozen=True)
class WarpError(Metric):
    """Mean squared difference between an edited frame and the next one brought back along the
    *source's* motion, over the pixels that are visible in both; then the mean over pairs.

    Pixels are dropped by forward-backward consistency and at motion boundaries, see `flow.visible`.
    A pair of which nothing is left (a cut) is nan and does not count. Numbers compare only within
    one flow estimator: the original has FlowNet 2, here it is OpenCV's DIS, or RAFT.

    Range: 0 (moves exactly as the source) to 1; literature often prints it times 1000 or more.
    Lower is better, but a blurred video has less of it, and a frozen source makes it plain flicker.
    Reference: the source. The value at frame t is that of the pair t-1, t.

    Args:
        flow: ``"dis"`` or ``"raft"``.

    Raises:
        ValueError: for another flow.
    """

    summary = "difference of edited frames along the source's motion (Lai et al. 2018)"
    higher_is_better = False
    reference = "source"

    flow: str = "dis"

    def __post_init__(self) -> None:
        if self.flow not in ESTIMATORS:
            raise ValueError(f"flow must be one of {', '.join(ESTIMATORS)}, got {self.flow!r}")

    def available(self) -> str | None:
        """None, or which flow cannot be estimated here and why."""
        return unavailable(self.flow)

    def least(self) -> tuple[int, int]:
        """One pair of frames that flow can be found in."""
        return 2, 16

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        errors = [float("nan")]
        for t, (forward, mask) in enumerate(_motion(self.flow, _Source.of(reference))):
            errors.append(_error(video[t], video[t + 1], forward, mask))
        scores = torch.tensor(errors, dtype=torch.float64)
        return Score(float(scores.nanmean()), scores)


@dataclass(frozen=True)
class _Source:
    """A video that equals another if their numbers and their devices do."""

    digest: bytes
    device: torch.device
    frames: Tensor = field(compare=False)

    @classmethod
    def of(cls, frames: Tensor) -> _Source:
        numbers = frames.contiguous().cpu().numpy()
        digest = hashlib.blake2b(repr(numbers.shape).encode() + numbers.tobytes()).digest()
        return cls(digest, frames.device, frames)


@functools.lru_cache(maxsize=1)
def _motion(flow: str, source: _Source) -> tuple[tuple[Tensor, Tensor], ...]:
    """For each pair of frames, the flow to the second, and what is visible in both."""
    find, found = estimator(flow), []
    for first, second in pairwise(source.frames):
        forward = find(first, second)
        found.append((forward, visible(forward, find(second, first))))
    return tuple(found)


def pair_error(first: Tensor, second: Tensor, forward: Tensor, backward: Tensor) -> float:
    """The error of two consecutive frames (3, H, W), given the source's flow (2, H, W) both ways.

    nan if no pixel is visible in both.
    """
    return _error(first, second, forward, visible(forward, backward))


def _error(first: Tensor, second: Tensor, forward: Tensor, mask: Tensor) -> float:
    difference = first - warp(second, forward)
    return float(difference[:, mask].double().square().mean())
