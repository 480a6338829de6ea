"""Three-axis rotary position tables with frame offsets, and rotation of keys and queries.

A backbone says what its model's rotations are, one table an axis. Positions along time are the
caller's choice: keys are cached before rotation and rotated to wherever they are used (rotations
compose, so this is exact)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["frame_positions", "rotary_table", "rotate"]


def rotary_table(
    axes: tuple[Tensor, Tensor, Tensor], frames: Sequence[int], height: int, width: int
) -> Tensor:
    """Rotation of every token of the given frames, as unit complex numbers.

    Args:
        axes: rotations by time, height and width, (positions, D_a) complex64 each; the D_a add up
            to head_dim / 2.
        frames: temporal position of each frame, in latent frames.
        height, width: token grid of a frame.

    Returns:
        (len(frames) * height * width, head_dim / 2) complex64, on the axes' device.

    Raises:
        ValueError: if a position lies outside the model's table.
    """
    t, h, w = axes
    size = len(t)
    if max((*frames, height - 1, width - 1)) >= size or min((*frames, 0)) < 0:
        raise ValueError(
            f"positions must lie in 0..{size - 1}, "
            f"got frames {list(frames)} of {height}x{width} tokens"
        )
    count = len(frames)
    at = torch.tensor(list(frames), device=t.device)
    shape = (count, height, width, -1)
    return torch.cat(
        [
            t[at].view(count, 1, 1, -1).expand(shape),
            h[:height].view(1, height, 1, -1).expand(shape),
            w[:width].view(1, 1, width, -1).expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: (..., T, heads, head_dim), any float dtype; computed in float32.
        table: (T, head_dim / 2) or (..., T, head_dim / 2) complex64 from `rotary_table`.

    Returns:
        as ``x``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table.unsqueeze(-2)).flatten(-2).type_as(x)


def frame_positions(
    start: int, block: int, context: Sequence[int], sink: int, limit: int
) -> tuple[list[int], list[int]]:
    """Temporal positions of a block and of the frames it attends to, valid for an endless stream.

    Up to ``limit`` frames positions are absolute, as in training. Past that the block stays at the
    last positions the model knows and everything in the window slides back with it, so relative
    positions in the window stay exact; only the sink's distance saturates.

    Args:
        start: absolute index of the block's first frame.
        block: S, frames in the block.
        context: absolute indices of the committed frames attended to.
        sink: number of sink frames (absolute index below this is a sink).
        limit: how many positions to use.

    Returns:
        positions of the block's frames, positions of the context frames.
    """
    back = max(0, start + block - limit)
    own = [start + i - back for i in range(block)]
    return own, [f if f < sink else f - back for f in context]
