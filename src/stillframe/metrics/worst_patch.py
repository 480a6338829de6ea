"""The worst patches: `measures.WorstPatch`, given whole videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, levels, register
from stillframe.metrics.measures import WorstPatch

__all__ = ["WorstPatches"]


@register("worst_patch")
@dataclass(frozen=True)
class WorstPatches(Metric):
    """99th percentile of the patches' root mean square differences from the dense edit.

    `measures.WorstPatch` has the definition in full. Frames are rounded to 8 bits first,
    as they are in a file. Of a frame by itself, the same percentile of its own patches.

    Range: 0 (identical) to 255 grey levels. Lower is better. Reference: the dense edit.
    """

    summary = "99th percentile of the patches' differences from the dense edit, in grey levels"
    higher_is_better = False
    reference = "dense"

    def least(self) -> tuple[int, int]:
        """A patch."""
        return 1, 16

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        whole, frames = WorstPatch(), []
        for edited, dense in zip(video, reference, strict=True):
            alone, pair = WorstPatch(), (levels(edited), levels(dense))
            alone.add(*pair)
            whole.add(*pair)
            frames.append(_percentile(alone))
        return Score(_percentile(whole), torch.tensor(frames, dtype=torch.float64))


def _percentile(patches: WorstPatch) -> float:
    told = patches.levels
    assert told is not None
    return told["p99"]
