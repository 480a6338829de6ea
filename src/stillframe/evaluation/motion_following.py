"""What of a clip would be computed if it were edited, and what followed: no model runs.

The parts that decide are a stream's own; every block is looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import TOLERANCE, Anchors, VisibleChange, VisibleMask
from stillframe.detection.staleness import Staleness
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

__all__ = ["PATCH", "TEMPORAL", "Followed", "follow", "following_row"]

#: Pixels of a patch, a side, and pixel frames of a latent frame; of every published model.
PATCH, TEMPORAL = 16, 4

_FRAMES = 3  # latent frames of a block


class Followed(NamedTuple):
    """What became of a block.

    Attributes:
        keep: (S, h, w) bool, computed.
        stale: (S, h, w) staleness in grey levels.
        settled: what moved; None if the block was computed whole.
    """

    keep: Tensor
    stale: Tensor
    settled: Settled | None


@torch.inference_mode()
def follow(frames: NDArray[np.uint8], motion: str, tolerance: float = TOLERANCE) -> list[Followed]:
    """Blocks of a clip; what is left at its end is left out.

    Args:
        frames: uint8 (T, H, W, 3), sides of whole patches.
        motion: "off", "global" or "full".
        tolerance: grey levels.
    """
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    video = torch.cat([video[:1].expand(TEMPORAL, -1, -1, -1), video]).unsqueeze(0)
    grid = Grid(_FRAMES, frames.shape[1] // PATCH, frames.shape[2] // PATCH)
    follower = None if motion == "off" else Motion(motion, VisibleChange(tolerance))
    select, anchors = VisibleMask(tolerance), Anchors()
    tokens, size = torch.zeros(1, _FRAMES, grid.frame_tokens, 1), _FRAMES * TEMPORAL
    found: list[Followed] = []
    for first in range(0, len(frames) - size + 1, size):
        pixels = video[:, first : first + size + TEMPORAL]
        block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid, pixels, anchors.pixels)
        keep, settled = torch.ones(1, _FRAMES, grid.height, grid.width, dtype=torch.bool), None
        if found and follower is not None:
            follower.begin(block)
            keep = select(block._replace(motion=follower))
            [settled] = follower.settle(keep.flatten(2))
        elif found:
            keep = select(block)
        if follower is not None and bool(keep.all()):
            follower.restart(block)
            settled = None
        stale = anchors.advance(pixels, keep)[0]
        if settled is not None:
            stale = torch.where(settled.moved | settled.stuck, settled.stale, stale)
        found.append(Followed(keep[0], stale, settled))
    return found


def following_row(frames: NDArray[np.uint8], motion: str) -> dict[str, Any]:
    """Of a clip, shares of its patches after the first block that are computed and that moved, and
    staleness of what is reused, in grey levels: ``p99`` and ``max``, None if nothing is."""
    blocks, staleness = follow(frames, motion)[1:], Staleness()
    for block in blocks:
        staleness.add(block.stale, block.keep)
    told = staleness.told() or {}
    moved = [0.0 if x.settled is None else float(x.settled.moved.float().mean()) for x in blocks]
    return {
        "computed": float(np.mean([float(x.keep.float().mean()) for x in blocks])),
        "moved": float(np.mean(moved)),
        "p99": told.get("p99"),
        "max": told.get("max"),
    }
