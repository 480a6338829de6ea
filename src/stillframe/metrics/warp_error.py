"""Warping error: how far an edit follows the motion of its source.

After Lai, Huang, Wang, Shechtman, Yumer, Yang, "Learning Blind Video Temporal Consistency", ECCV
2018. `flow.py` has the flow, the warping and the occlusion mask."""

from __future__ import annotations

from dataclasses import dataclass

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
        find = estimator(self.flow)
        errors = [float("nan")]
        for t in range(len(video) - 1):
            first, second = reference[t], reference[t + 1]
            forward, backward = find(first, second), find(second, first)
            errors.append(pair_error(video[t], video[t + 1], forward, backward))
        scores = torch.tensor(errors, dtype=torch.float64)
        return Score(float(scores.nanmean()), scores)


def pair_error(first: Tensor, second: Tensor, forward: Tensor, backward: Tensor) -> float:
    """The error of two consecutive frames (3, H, W), given the source's flow (2, H, W) both ways.

    nan if no pixel is visible in both.
    """
    mask = visible(forward, backward)
    difference = first - warp(second, forward)
    return float(difference[:, mask].double().square().mean())
