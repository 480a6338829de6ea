"""Source frames by block, for whoever looks at pixels beside latents.

An autoencoder takes frames as they come and hands out latents by the block; this keeps the frames
that each latent frame is shown as.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline

__all__ = ["PixelBlocks"]


class PixelBlocks:
    """The pixel frames that blocks of latents stand for. Add what is encoded, take once a block.

    Where the first block is decoded to fewer frames than others, its first frame is repeated in
    front.

    Args:
        timeline: of the stream.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._count = timeline.decoded_from(1)
        self._size, self._temporal = timeline.later_frames, timeline.temporal
        self._pending: deque[Tensor] = deque()
        self._before: Tensor | None = None

    def add(self, frames: Tensor) -> None:
        """Take frames (B, T, 3, H, W)."""
        if frames.shape[1]:
            self._pending.append(frames)

    def take(self) -> Tensor:
        """The next block and the latent frame before it: (B, (S+1)*temporal, 3, H, W).

        The block at the end of a stream is completed by repeating its last frame; the first block
        of a stream has its first frame before it.
        """
        own = self._taken()
        if own.shape[1] < self._count:
            own = torch.cat(
                [own, own[:, -1:].expand(-1, self._count - own.shape[1], -1, -1, -1)], 1
            )
        if own.shape[1] < self._size:
            own = torch.cat([own[:, :1].expand(-1, self._size - own.shape[1], -1, -1, -1), own], 1)
        before = self._before
        if before is None:
            before = own[:, :1].expand(-1, self._temporal, -1, -1, -1)
        # a copy: these outlive what was pushed, which may be one long clip
        self._before = own[:, -self._temporal :].clone()
        self._count = self._size
        return torch.cat([before, own], 1)

    def _taken(self) -> Tensor:
        """As many of the waiting frames as the block takes; the last one seen if there are none."""
        parts, wanted = [], self._count
        while self._pending and wanted:
            part = self._pending.popleft()
            parts.append(part[:, :wanted])
            if part.shape[1] > wanted:
                self._pending.appendleft(part[:, wanted:])
            wanted -= parts[-1].shape[1]
        if parts:
            return torch.cat(parts, 1)
        assert self._before is not None
        return self._before[:, -1:]
