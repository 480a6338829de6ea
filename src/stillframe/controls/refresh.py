"""Rolling refresh: every place of the picture is recomputed at least once in R blocks.

What codecs call intra refresh: instead of a whole block now and then, each block recomputes one
R-th of the places, all frames of them, so that picture, cached keys and values and the recovery's
store are renewed while speed stays flat. Which places are due is a matter of the block's number
alone: it depends neither on the device nor on what moved, and a burst of motion cannot make a burst
of refreshes R blocks later. Knows places and blocks, not latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Demands,
    RunningControl,
    StreamFacts,
    register,
)
from stillframe.options import Option
from stillframe.tokens.turns import places_in_turn
from stillframe.untrusted.numbers import check_number

__all__ = ["Refresh", "Refreshing"]


@register("refresh")
@dataclass(frozen=True)
class Refresh(Control):
    """Recompute every place at least once in so many blocks.

    Attributes:
        blocks: R, at least 1; at most 1 / R of the tokens are recomputed for it.

    Raises:
        ValueError: for fewer than 1.
    """

    summary = "every patch recomputed at least once in so many blocks"
    options: ClassVar = {
        "refresh": Option(
            "int", "Recompute every patch at least once in R blocks.", least=1, most=65536,
            metavar="R", group="What is recomputed", live=True,
        ),
    }  # fmt: skip
    unused: ClassVar = {"refresh": None, "refreshed_tokens": 0, "oldest_blocks": None}
    order = 60

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a refresh takes 1 or more blocks, got {self.blocks}")
        check_number("the blocks that a refresh takes", self.blocks, 1, 10**6, whole=True)

    def start(self, facts: StreamFacts) -> Refreshing:
        return Refreshing(self)


class Refreshing(RunningControl[Refresh]):
    """The refresh of one stream.

    Attributes:
        age: (B, N) int32, blocks since each place was last recomputed; 0 in the block that did, and
            where it is barred. Empty before the first block.
    """

    def __init__(self, control: Refresh) -> None:
        super().__init__(control)
        self.age = torch.empty(0)
        self._phases = self._oldest = self._added = torch.empty(0)
        self._number = 0

    def begin(self, block: ControlledBlock) -> None:
        if self._number == 0:
            rows, _, height, width = block.shape
            device = block.tokens.device
            phases = places_in_turn(height, width, self.control.blocks)
            self._phases = phases.view(height, width).to(device)
            self.age = torch.zeros(rows, height * width, dtype=torch.int32, device=device)
            self._oldest = torch.zeros((), dtype=torch.int32, device=device)
            self._added = torch.zeros((), dtype=torch.int64, device=device)

    def demands(self, block: ControlledBlock) -> Demands:
        return block.no_demands()._replace(due=self._due)

    @property
    def _due(self) -> Tensor:
        """Places of this block's turn, (h, w) bool."""
        return self._phases == self._number % self.control.blocks

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        refreshed = keep | (self._due & ~block.demands.barred)
        self._added += (refreshed & ~keep).sum()
        return refreshed

    def end(self, block: ControlledBlock) -> None:
        assert block.keep is not None
        young = block.keep.any(1) | block.demands.barred.flatten(2).any(1)
        self.age = torch.where(young, 0, self.age + 1)
        self._oldest = torch.maximum(self._oldest, self.age.max())
        self._number += 1

    def report(self) -> dict[str, Any]:
        """Asks also for tokens that were recomputed for it alone, and the largest age there was."""
        begun = self._number > 0
        return {
            "refresh": self.control.blocks,
            "refreshed_tokens": int(self._added) if begun else 0,
            "oldest_blocks": int(self._oldest) if begun else 0,
        }
