"""A control of one's own: recompute a part of the picture, whether or not it changed.

    python examples/own_control.py

A control is one class for what is asked for, and one for a stream in which it runs; once it is
registered it is an option of Python, of the command line and of the server like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe import EditConfig, load_pipeline
from stillframe.controls import (
    Control,
    ControlledBlock,
    Demands,
    RunningControl,
    StreamFacts,
    register,
)
from stillframe.options import Option


@register("left")
@dataclass(frozen=True)
class Left(Control):
    """Always recompute so large a share of the picture, from its left edge on."""

    summary = "the left part of the picture recomputed"
    options: ClassVar = {
        "left": Option(
            "float", "Recompute this share of the picture, from the left.", least=0, most=1
        )
    }

    share: float

    def start(self, facts: StreamFacts) -> RunningLeft:
        return RunningLeft(self)


class RunningLeft(RunningControl[Left]):
    """`Left` in one stream, block after block."""

    blocks = 0

    def _columns(self, block: ControlledBlock) -> Tensor:
        width = block.grid.width
        return torch.arange(width, device=block.tokens.device) < self.control.share * width

    def demands(self, block: ControlledBlock) -> Demands:
        # what a rate has to pay for
        return block.no_demands()._replace(forced=self._columns(block))

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        return keep | self._columns(block)

    def end(self, block: ControlledBlock) -> None:
        self.blocks += 1

    def report(self) -> dict[str, Any]:
        return {"left": {"share": self.control.share, "blocks": self.blocks}}


def still_clip(frames: int = 21, height: int = 96, width: int = 160) -> NDArray[np.uint8]:
    """A clip in which nothing changes, (T, H, W, 3)."""
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, (height // 16, width // 16, 3), dtype=np.uint8)
    return still.repeat(16, 0).repeat(16, 1)[None].repeat(frames, 0)


def main() -> None:
    """Edit a still clip without and with the control."""
    pipe, clip = load_pipeline("tiny"), still_clip()
    for values in ({}, {"left": 0.3}):
        edited: Any = pipe(
            clip, "oil painting", config=EditConfig.from_options({"seed": 0, **values})
        )
        shares = [f"{stats.kept_share:.0%}" for stats in edited.blocks]
        print(f"{values or 'nothing asked for'}: computed by block: {', '.join(shares)}")


if __name__ == "__main__":
    main()
