"""Restoration: computed and pruned tokens back to a full grid, in temporal order.

A pruned token takes the value of its temporal predecessor, at the same place or, where the picture
moved, at the place that its content comes from (`Plan.origin`); the predecessor of a block's first
frame is in the last frame of the block before. Written as one gather: every slot knows from which
row of ``[last frame of the previous block | this block]`` its value comes (`Plan.provider`).

Source: arXiv 2603.05811, restoration; the same order serves keys and values of the context pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.tokens.grid import predecessor_rows, take

__all__ = ["predecessor_rows", "restore", "restore_slowly"]


def restore(own: Tensor, previous: Tensor, rows: Tensor) -> Tensor:
    """Fill a block's pruned slots.

    Args:
        own: (B, S*N, ...); rows of pruned slots are ignored.
        previous: (B, N, ...), the last frame of the block before.
        rows: `Plan.provider`.

    Returns:
        (B, S*N, ...).
    """
    return take(torch.cat([previous, own], 1), rows)


def restore_slowly(
    own: Tensor, previous: Tensor, keep: Tensor, origin: Tensor | None = None
) -> Tensor:
    """The slow reference of `restore`: frame by frame, as the paper states it, each frame displaced
    first where ``origin`` says so."""
    frames, tokens = keep.shape[1:]
    out = []
    for t in range(frames):
        frame = own[:, t * tokens : (t + 1) * tokens]
        if origin is not None:
            rows = zip(previous, origin[:, t], strict=True)
            previous = torch.stack([values[places] for values, places in rows])
        previous = torch.where(keep[:, t].unsqueeze(-1), frame, previous)
        out.append(previous)
    return torch.cat(out, 1)
