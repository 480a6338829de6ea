"""Whole blocks at regular distances, as a codec places I-frames in a group of pictures.

A whole block ends whatever errors reuse has piled up. It does not forget the context: earlier
frames are still attended to. Knows numbers of blocks, neither masks nor latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stillframe.controls.base import OneControl, register
from stillframe.options import Option

__all__ = ["Gop"]


@register("gop")
@dataclass(frozen=True)
class Gop(OneControl):
    """At least every so many blocks one is whole; a stream's first block is.

    Attributes:
        blocks: N, at least 1; 1 makes every block whole.

    Raises:
        ValueError: for fewer than 1.
    """

    summary = "a whole block at regular distances"
    options: ClassVar = {
        "gop": Option(
            "int",
            "Compute a whole block every N blocks.",
            least=1,
            most=65536,
            metavar="N",
            group="What is recomputed",
            live=True,
        )
    }

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a whole block comes every 1 or more blocks, got {self.blocks}")

    def due(self, since: int) -> bool:
        """Whether the next block must be whole, ``since`` blocks after the latest whole one."""
        return since >= self.blocks
