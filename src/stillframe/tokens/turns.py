"""Taking turns: which places are due in which of some blocks, evenly over time and picture."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["places_in_turn"]

# steps along x and y of the R2 sequence (M. Roberts, 2018): 1/g and 1/g^2, g^3 = g + 1. Places
# whose values are near each other lie far apart, so each n-th of them covers the picture evenly.
_STEPS = (0.7548776662466927, 0.5698402909980532)


def places_in_turn(height: int, width: int, turns: int) -> Tensor:
    """In which of ``turns`` turns each place is due: (h*w,) int64, 0 to ``turns - 1``.

    Every turn has ``floor`` or ``ceil`` of h*w / turns places, spread evenly over the picture.
    """
    y = torch.arange(height, dtype=torch.float64).view(-1, 1)
    x = torch.arange(width, dtype=torch.float64)
    value = ((y + 1) * _STEPS[1] + (x + 1) * _STEPS[0]).frac().flatten()
    rank = value.argsort(stable=True).argsort()
    return rank * turns // len(rank)
