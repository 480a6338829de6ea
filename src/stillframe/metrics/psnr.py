"""Peak signal-to-noise ratio. `measures.PeakSignalToNoise` is its streaming form, for 8-bit frames;
here the videos are whole and not rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, register

__all__ = ["PeakSignalToNoiseRatio"]


@register("psnr")
@dataclass(frozen=True)
class PeakSignalToNoiseRatio(Metric):
    """Decibels between two videos: ``10 log10(1 / e)``, e being the mean squared difference over
    all pixels, channels and frames (not the mean of the frames' figures).

    Range: 0 (black against white) to infinity (identical); about 30 is a small and 40 an invisible
    difference. Higher is better. Reference: the dense edit.
    """

    summary = "likeness to the dense edit, pixel by pixel, in decibels"
    higher_is_better = True
    reference = "dense"

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        pairs = zip(video, reference, strict=True)
        errors = torch.stack([(a.double() - b.double()).square().mean() for a, b in pairs]).cpu()
        return Score(float(_decibels(errors.mean())), _decibels(errors))


def _decibels(error: Tensor) -> Tensor:
    return -10 * error.log10() + 0.0  # + 0: no error at all is inf, an error of 1 is 0 and not -0
