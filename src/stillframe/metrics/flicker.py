"""Flicker where the source stands still: `measures.StaticFlicker`, given whole videos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, levels, register
from stillframe.metrics.measures import StaticFlicker

__all__ = ["Flicker"]


@register("flicker")
@dataclass(frozen=True)
class Flicker(Metric):
    """Mean absolute change of an edited pixel's grey level from frame to frame, over all pixels
    whose source has changed by at most 2 of 255 levels in each of the last three steps.

    `measures.StaticFlicker` has the definition in full. Frames are rounded to 8 bits
    first, as they are in a file. Frames without a still pixel, and the first three, are nan, and so
    is a video that has none.

    Range: 0 (frozen) to 255 grey levels; the source's own is at most 2. Lower is better. Reference:
    the source.
    """

    summary = "change of edited pixels, in grey levels, where the source stands still"
    higher_is_better = False
    reference = "source"

    def least(self) -> tuple[int, int]:
        """Three steps from frame to frame."""
        return 4, 1

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        meter = StaticFlicker(1)
        frames, before, pixels = [], (0.0, 0), video[0, 0].numel()
        for i, (edited, source) in enumerate(zip(video, reference, strict=True)):
            meter.add(levels(source), levels(edited))
            now = _totals(meter, i * pixels)
            count = now[1] - before[1]
            frames.append((now[0] - before[0]) / count if count else math.nan)
            before = now
        value = meter.levels[0]
        scores = torch.tensor(frames, dtype=torch.float64)
        return Score(math.nan if value is None else value, scores)


def _totals(meter: StaticFlicker, pixels: int) -> tuple[float, int]:
    """Sum over still pixels so far, and their number, of ``pixels`` that could have been."""
    count = round((meter.still_share or 0.0) * pixels)
    return (meter.levels[0] or 0.0) * count, count
