"""Faults that a mean over pictures hides: a grid, shimmer where nothing moves, lines that are lost.

Each is one number of a clip, with what a fault-free clip has said beside it. Pure functions of
frames: nothing here knows of models or of files.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_ratio", "line_correlation", "still_change"]


def _steps(frames: Tensor, dim: int) -> Tensor:
    """Absolute differences of neighbours along ``dim``, averaged over everything else: (n - 1)."""
    change = frames.diff(dim=dim).abs()
    return change.mean([d for d in range(change.ndim) if d != dim % change.ndim])


def grid_ratio(frames: Tensor, period: int, like: Tensor | None = None) -> float:
    """How much larger steps between neighbouring pixels are where patches meet.

    Args:
        frames: (T, 3, H, W).
        period: the patch's side in pixels.
        like: frames without patches, of the same shape; their own ratio is divided by, since a
            picture may have an edge where patches meet.

    Returns:
        mean step across the borders of patches over the mean of all other steps, rows or columns,
        whichever is worse; 1 where there is no grid.
    """
    worst = 0.0
    for dim in (-1, -2):
        ratio = _ratio(_steps(frames, dim), period)
        worst = max(worst, ratio if like is None else ratio / _ratio(_steps(like, dim), period))
    return worst


def _ratio(steps: Tensor, period: int) -> float:
    border = torch.arange(1, len(steps) + 1, device=steps.device) % period == 0
    return (steps[border].mean() / steps[~border].mean()).item()


def still_change(frames: Tensor, settling: int = 12) -> float:
    """Change of a still clip from frame to frame, in grey levels of 255; 0 where it stands still.

    Args:
        frames: (T, 3, H, W) in [0, 1], made from one picture shown again and again.
        settling: frames at the start that are left out, while memories fill.
    """
    return 255 * frames[settling:].diff(dim=0).abs().mean().item()


def line_correlation(made: Tensor, target: Tensor) -> float:
    """Correlation of two clips' gradients, (T, 3, H, W) each: 1 where lines are the same."""
    pairs = []
    for frames in (made, target):
        grey = frames.float().mean(1)
        dx, dy = grey.diff(dim=-1)[:, :-1], grey.diff(dim=-2)[..., :-1]
        pairs.append((dx.square() + dy.square()).sqrt().flatten())
    return torch.corrcoef(torch.stack(pairs))[0, 1].item()
