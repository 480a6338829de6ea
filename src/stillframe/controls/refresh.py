"""Rolling refresh: every place of the picture is recomputed at least once in R blocks.

What codecs call intra refresh: instead of a whole block now and then, each block recomputes one
R-th of the places, all frames of them, so that picture, cached keys and values and the recovery's
store are renewed while speed stays flat. Which places are due is a matter of the block's number
alone: it depends neither on the device nor on what moved, and a burst of motion cannot make a burst
of refreshes R blocks later. Knows places and blocks, not latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillframe.controls.base import OneControl, register
from stillframe.options import Option
from stillframe.tokens.grid import Grid

__all__ = ["Refresh", "Refreshing", "refresh_phases"]

# steps along x and y of the R2 sequence (M. Roberts, 2018): 1/g and 1/g^2, g^3 = g + 1. Places
# whose values are near each other lie far apart, so each R-th of them covers the picture evenly.
_STEPS = (0.7548776662466927, 0.5698402909980532)


def refresh_phases(height: int, width: int, blocks: int) -> Tensor:
    """In which of ``blocks`` blocks each place is due: (h*w,) int64, 0 to ``blocks - 1``.

    Every block has ``floor`` or ``ceil`` of h*w / blocks places.
    """
    y = torch.arange(height, dtype=torch.float64).view(-1, 1)
    x = torch.arange(width, dtype=torch.float64)
    value = ((y + 1) * _STEPS[1] + (x + 1) * _STEPS[0]).frac().flatten()
    rank = value.argsort(stable=True).argsort()
    return rank * blocks // len(rank)


@register("refresh")
@dataclass(frozen=True)
class Refresh(OneControl):
    """Recompute every place at least once in so many blocks.

    Attributes:
        blocks: R, at least 1; at most 1 / R of the tokens are recomputed for it.

    Raises:
        ValueError: for fewer than 1.
    """

    summary = "every patch recomputed at least once in so many blocks"
    options: ClassVar = {
        "refresh": Option(
            "int",
            "Recompute every patch at least once in R blocks.",
            least=1,
            most=65536,
            metavar="R",
            group="What is recomputed",
            live=True,
        )
    }

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a refresh takes 1 or more blocks, got {self.blocks}")


class Refreshing:
    """The refresh of one stream. For every block `add`, unless it is whole, and then `note`.

    Args:
        refresh: how often.
        grid: of the block.
        batch: rows of a batch.
        device: of the masks.

    Attributes:
        age: (B, N) int32, blocks since each place was last recomputed; 0 in the block that did, and
            where it is spared.
    """

    def __init__(self, refresh: Refresh, grid: Grid, batch: int, device: torch.device) -> None:
        self._blocks = refresh.blocks
        self._phases = refresh_phases(grid.height, grid.width, refresh.blocks).to(device)
        self.age = torch.zeros(batch, grid.frame_tokens, dtype=torch.int32, device=device)
        self._oldest = torch.zeros((), dtype=torch.int32, device=device)
        self._added = torch.zeros((), dtype=torch.int64, device=device)
        self._number = 0

    def add(self, keep: Tensor, spared: Tensor | None = None) -> Tensor:
        """A keep mask (B, S, N) with the places that are due in this block.

        Args:
            keep: the mask.
            spared: (S, N) bool, what is never due, if there is anything.
        """
        due = self._phases == self._number % self._blocks
        refreshed = keep | (due if spared is None else due & ~spared)
        self._added += (refreshed & ~keep).sum()
        return refreshed

    def note(self, keep: Tensor, spared: Tensor | None = None) -> None:
        """Take the mask (B, S, N) that the block was computed with, and what was spared."""
        young = keep.any(1) if spared is None else keep.any(1) | spared.any(0)
        self.age = torch.where(young, 0, self.age + 1)
        self._oldest = torch.maximum(self._oldest, self.age.max())
        self._number += 1

    @property
    def added(self) -> int:
        """Tokens that were recomputed for the refresh alone; waits for the device."""
        return int(self._added)

    @property
    def oldest(self) -> int:
        """The largest age that any place has had; waits for the device."""
        return int(self._oldest)
