"""Temporal LPIPS: whether a video changes from frame to frame as much as its reference does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stillframe.metrics.base import Score, register
from stillframe.metrics.lpips import PerceptualSimilarity, distances

__all__ = ["TemporalPerceptualSimilarity"]


@register("tlpips")
@dataclass(frozen=True)
class TemporalPerceptualSimilarity(PerceptualSimilarity):
    """``|LPIPS(x[t-1], x[t]) - LPIPS(y[t-1], y[t])|`` of a video x and its reference y; the mean
    over t. Flicker and freezing both raise it.

    Chu, Xie, Mayer, Leal-Taixe, Thuerey, "Learning Temporal Coherence via Self-Supervision for
    GAN-based Video Generation", ACM TOG 2020 (there called tLP, and printed times 100).

    Range: 0 (identical) to about 1. Lower is better. Reference: the dense edit. The first frame is
    nan.

    Args:
        net: as for LPIPS.

    Raises:
        ValueError: for another net.
    """

    summary = "difference to the dense edit in perceptual change over time (Chu et al. 2020)"

    def least(self) -> tuple[int, int]:
        """Two frames that reach the trunk's last layer."""
        return 2, 32

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        own, other = (distances(self.net, pairwise(v)) for v in (video, reference))
        scores = torch.cat([torch.full((1,), math.nan, dtype=torch.float64), (own - other).abs()])
        return Score(float(scores.nanmean()), scores)
