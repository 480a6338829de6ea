"""Source frames by block, for methods that look at pixels beside latents.

An autoencoder takes frames as they come and hands out latents by the block; this keeps the frames
of the same blocks. It does not know the autoencoder, nor what is looked for in the frames.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["PixelBlocks"]


class PixelBlocks:
    """The pixel frames that blocks of latents stand for. Add what is encoded, take once a block.

    Args:
        first: pixel frames that the first block takes. Fewer than ``frames * temporal`` where its
            first latent stands for fewer; the first frame is repeated in front then.
        frames: S, latent frames of a block.
        temporal: pixel frames of a latent frame.
    """

    def __init__(self, first: int, frames: int, temporal: int) -> None:
        self._count = first
        self._size, self._temporal = frames * temporal, temporal
        self._pending: deque[Tensor] = deque()
        self._before: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        """Take frames (B, T, 3, H, W)."""
        self._pending.extend(frames.unbind(1))

    def take(self) -> Tensor:
        """The next block and the latent frame before it: (B, (S+1)*temporal, 3, H, W).

        The block at the end of a stream is completed by repeating its last frame; the first block
        of a stream has its first frame before it.
        """
        own = [self._pending.popleft() for _ in range(min(self._count, len(self._pending)))]
        own = own or self._before[-1:]
        own += own[-1:] * (self._count - len(own))
        own = own[:1] * (self._size - len(own)) + own
        before = self._before or own[:1] * self._temporal
        # a copy: these outlive what was pushed, which may be one long clip
        self._before = [frame.clone() for frame in own[-self._temporal :]]
        self._count = self._size
        return torch.stack([*before, *own], 1)
