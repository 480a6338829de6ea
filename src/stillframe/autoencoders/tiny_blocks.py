"""Blocks through the tiny autoencoder in as many pieces as memory asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stillframe.autoencoders.tiny import TEMPORAL_FACTOR, Memory

__all__ = ["DECODING", "ENCODING", "BlockCoder", "Direction", "Step", "WholeBlocks", "in_pieces"]

#: From a chunk and what is remembered, None at first, to its output and what is remembered.
Step = Callable[[Tensor, "Memory | None"], tuple[Tensor, Memory]]


class BlockCoder(Protocol):
    """One direction of one stream through a tiny autoencoder."""

    def __call__(self, block: Tensor, changed: Tensor | None) -> Tensor:
        """Encode or decode the next block.

        Args:
            block: frames (B, T, 3, H, W), or latents (B, C, S, h, w).
            changed: (B, S, h, w) bool, what is needed anew; None: everything.
        """
        ...


@dataclass(frozen=True)
class Direction:
    """How blocks lie in tensors.

    Attributes:
        time_in, time_out: dimensions of time.
        length: of a latent frame along the first.
    """

    time_in: int
    time_out: int
    length: int

    def latents_at_once(self, block: Tensor, most: int) -> int:
        """Latent frames of a block that together have at most so many pixels going in; 1 at least.

        Pixels are pixels of frames, or of latents.
        """
        batch, height, width = block.shape[0], *block.shape[3:]
        return max(1, most // (self.length * batch * height * width))


ENCODING = Direction(1, 2, TEMPORAL_FACTOR)
DECODING = Direction(2, 1, 1)


def in_pieces(
    step: Step, direction: Direction, block: Tensor, memory: Memory | None, most: int
) -> tuple[list[Tensor], Memory | None]:
    """Run a step over some latent frames.

    Args:
        most: pixels at once, see `Direction.latents_at_once`.

    Returns:
        the parts of its output, and what is remembered.
    """
    parts: list[Tensor] = []
    if block.shape[direction.time_in]:
        size = direction.length * direction.latents_at_once(block, most)
        for piece in block.split(size, direction.time_in):
            part, memory = step(piece, memory)
            parts.append(part)
    return parts, memory


class WholeBlocks:
    """One direction of one stream that computes everything, whatever changed.

    Args:
        step: the autoencoder's.
        most: pixels at once.
    """

    def __init__(self, step: Step, direction: Direction, most: int) -> None:
        self._step = step
        self._direction = direction
        self._most = most
        self._memory: Memory | None = None

    def __call__(self, block: Tensor, changed: Tensor | None) -> Tensor:
        """See `BlockCoder`."""
        parts, self._memory = in_pieces(
            self._step, self._direction, block, self._memory, self._most
        )
        return torch.cat(parts, self._direction.time_out)
