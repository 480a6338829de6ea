"""Structural similarity, and the windowed statistics that its multi-scale form shares.

Written after the paper: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error
Visibility to Structural Similarity", IEEE TIP 13(4), 2004."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, register

__all__ = ["WINDOW", "StructuralSimilarity", "grey", "luminance_and_structure"]

WINDOW = 11  # pixels a side
_SIGMA = 1.5
_C1 = 0.01**2  # for numbers from 0 to 1
_C2 = 0.03**2


@register("ssim")
@dataclass(frozen=True)
class StructuralSimilarity(Metric):
    """Likeness of local luminance, contrast and structure, frame by frame, in BT.601 grey.

    As in Wang et al. 2004: a Gaussian window of 11 x 11 pixels with standard deviation 1.5, placed
    wherever it fits whole, K1 = 0.01, K2 = 0.03, the mean over all places, then over frames. Frames
    are not shrunk first, which some implementations do from 512 pixels on.

    Range: -1 to 1 (identical); below 0 is rare. Higher is better. Reference: the dense edit.
    """

    summary = "likeness to the dense edit in local structure (Wang et al. 2004)"
    higher_is_better = True
    reference = "dense"

    def least(self) -> tuple[int, int]:
        """One frame that a window fits into."""
        return 1, WINDOW

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        frames = []
        for a, b in zip(video, reference, strict=True):
            luminance, structure = luminance_and_structure(grey(a), grey(b))
            frames.append((luminance * structure).mean())
        scores = torch.stack(frames).cpu()
        return Score(float(scores.mean()), scores)


def grey(frame: Tensor) -> Tensor:
    """BT.601 luma of a frame (3, H, W): (H, W), in float64, as variances are differences of squares
    and float32 would be off by more than the constants in the dark."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64, device=frame.device)
    return torch.tensordot(weights, frame.double(), dims=1)


def luminance_and_structure(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM of two pictures (H, W): luminance, and contrast times structure.

    Each is (H - 10, W - 10), one number for each place of the window.
    """
    mean_a, mean_b, aa, bb, ab = _blurred(torch.stack([a, b, a * a, b * b, a * b]))
    squares = mean_a.square() + mean_b.square()
    product = mean_a * mean_b
    luminance = (2 * product + _C1) / (squares + _C1)
    structure = (2 * (ab - product) + _C2) / (aa + bb - squares + _C2)
    return luminance, structure


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means (n, H - 10, W - 10) of maps (n, H, W): rows, then columns."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(x / _SIGMA).square() / 2)
    weights = weights / weights.sum()
    for dim in (-1, -2):
        places = maps.shape[dim] - WINDOW + 1
        means = maps.narrow(dim, 0, places) * float(weights[0])
        for i in range(1, WINDOW):  # a fraction of the time that a convolution in float64 takes
            means.add_(maps.narrow(dim, i, places), alpha=float(weights[i]))
        maps = means
    return maps
