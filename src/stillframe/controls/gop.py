"""Whole blocks at regular distances, as a codec places I-frames in a group of pictures.

A whole block ends whatever errors reuse has piled up. It does not forget the context: earlier
frames are still attended to. Knows numbers of blocks, neither masks nor latents.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.untrusted.numbers import check_number

__all__ = ["Gop"]


@dataclass(frozen=True)
class Gop:
    """At least every so many blocks one is whole; a stream's first block is.

    Attributes:
        blocks: N, at least 1; 1 makes every block whole.

    Raises:
        ValueError: for fewer than 1.
    """

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a whole block comes every 1 or more blocks, got {self.blocks}")
        check_number("the distance of whole blocks", self.blocks, 1, 10**6, whole=True)

    def due(self, since: int) -> bool:
        """Whether the next block must be whole, ``since`` blocks after the latest whole one."""
        return since >= self.blocks
