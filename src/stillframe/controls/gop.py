"""Whole blocks at regular distances, as a codec places I-frames in a group of pictures.

A whole block ends whatever errors reuse has piled up. It does not forget the context: earlier
frames are still attended to. Knows numbers of blocks, neither masks nor latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Order,
    RunningControl,
    StreamFacts,
    register,
)
from stillframe.options import Option
from stillframe.untrusted.numbers import check_number

__all__ = ["Gop", "RunningGop"]


@register("gop")
@dataclass(frozen=True)
class Gop(Control):
    """At least every so many blocks one is whole; a stream's first block is.

    Attributes:
        blocks: N, at least 1; 1 makes every block whole.

    Raises:
        ValueError: for fewer than 1.
    """

    summary = "a whole block at regular distances"
    options: ClassVar = {
        "gop": Option(
            "int", "Compute a whole block every N blocks.", least=1, most=65536, metavar="N",
            group="What is recomputed", live=True,
        ),
    }  # fmt: skip
    unused: ClassVar = {"gop": None}
    makes_whole = True

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a whole block comes every 1 or more blocks, got {self.blocks}")
        check_number("the distance of whole blocks", self.blocks, 1, 10**6, whole=True)

    def start(self, facts: StreamFacts) -> RunningGop:
        return RunningGop(self)


class RunningGop(RunningControl[Gop]):
    """Counts blocks since the latest whole one."""

    def __init__(self, control: Gop) -> None:
        super().__init__(control)
        self._since = 0

    def begin(self, block: ControlledBlock) -> Order:
        return Order(whole=self._since >= self.control.blocks)

    def end(self, block: ControlledBlock) -> None:
        self._since = 1 if block.whole else self._since + 1

    def report(self) -> dict[str, Any]:
        return {"gop": self.control.blocks}
