"""Multi-scale structural similarity: SSIM's factors at five sizes of the picture.

Written after the paper: Wang, Simoncelli, Bovik, "Multi-Scale Structural Similarity for Image
Quality Assessment", Asilomar 2003."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from stillframe.metrics.base import Metric, Score, register
from stillframe.metrics.ssim import WINDOW, grey, luminance_and_structure

__all__ = ["MultiScaleSimilarity"]


@register("ms_ssim")
@dataclass(frozen=True)
class MultiScaleSimilarity(Metric):
    """SSIM's contrast and structure at each of five scales, and luminance at the coarsest, each to
    the power of its weight: 0.0448, 0.2856, 0.3001, 0.2363, 0.1333, from fine to coarse.

    From scale to scale the picture is averaged over 2 x 2 pixels; an odd last row or column is left
    out. A mean structure below 0, which has no real power, counts as 0. With fewer scales the first
    weights are scaled to a sum of 1; with one it is SSIM, but for that.

    Range: 0 to 1 (identical). Higher is better. Reference: the dense edit.

    Args:
        scales: 1 to 5; five need sides of 176 pixels.

    Raises:
        ValueError: for another number of scales.
    """

    summary = "likeness to the dense edit in structure at five scales (Wang et al. 2003)"
    higher_is_better = True
    reference = "dense"
    WEIGHTS: ClassVar[tuple[float, ...]] = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    scales: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.scales <= len(self.WEIGHTS):
            raise ValueError(f"ms_ssim has 1 to {len(self.WEIGHTS)} scales, got {self.scales}")

    def least(self) -> tuple[int, int]:
        """One frame that a window fits into at the coarsest scale."""
        return 1, WINDOW * 2 ** (self.scales - 1)

    def weights(self) -> tuple[float, ...]:
        """The exponents that are used, from fine to coarse."""
        used = self.WEIGHTS[: self.scales]
        if used == self.WEIGHTS:  # as published, where rounding makes the sum 1.0001
            return used
        return tuple(weight / sum(used) for weight in used)

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        pairs = zip(video, reference, strict=True)
        scores = torch.stack([self._frame(grey(a), grey(b)) for a, b in pairs]).cpu()
        return Score(float(scores.mean()), scores)

    def _frame(self, a: Tensor, b: Tensor) -> Tensor:
        score = torch.ones((), dtype=a.dtype, device=a.device)
        *finer, coarsest = self.weights()
        for weight in finer:
            _, structure = luminance_and_structure(a, b)
            score = score * structure.mean().clamp(min=0) ** weight
            a, b = avg_pool2d(torch.stack([a, b])[:, None], 2)[:, 0]
        luminance, structure = luminance_and_structure(a, b)
        return score * (luminance * structure).mean().clamp(min=0) ** coarsest
