"""Masks out and in, and a region: one analysis for two prompts, and an edit of one part alone.

    python examples/masks_and_regions.py

Which patches are computed is written to a file and used for another prompt; then only a region is
edited, while the rest shows its source.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillframe import BlockStats, Box, CausalWanPipeline, Controls, Region, load_pipeline
from stillframe.controls import GivenMasks, MaskHeader, MaskRecorder


def drawn_clip(frames: int = 21, height: int = 96, width: int = 160) -> NDArray[np.uint8]:
    """A still picture before which a square moves, (T, H, W, 3)."""
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, (height // 16, width // 16, 3), dtype=np.uint8)
    clip = still.repeat(16, 0).repeat(16, 1)[None].repeat(frames, 0)
    for t in range(frames):
        clip[t, 32:64, 4 * t : 4 * t + 32] = (220, 60, 40)
    return clip


def recorded(pipe: CausalWanPipeline, clip: NDArray[np.uint8]) -> GivenMasks:
    """The masks that an edit of the clip was made with."""
    recorder = MaskRecorder()
    shapes: list[torch.Size] = []

    def note(stats: BlockStats) -> None:
        recorder.add(stats.keep)
        shapes.append(stats.keep.shape)

    # what moved is reused where it is now; masks alone do not say from where, so that is off here
    pipe(clip, "oil painting", method="prune:motion=off", seed=0, callback_on_block_end=note)
    _, frames, height, width = shapes[0]
    header = MaskHeader(frames, height, width, pipe.frame_multiple, pipe.timeline.temporal)
    return recorder.masks(header)


def main() -> None:
    """Edit with masks of another edit, and in a region only."""
    pipe, clip = load_pipeline("tiny"), drawn_clip()
    recorded(pipe, clip).write("edit.masks")

    masks = GivenMasks.read("edit.masks")
    again: Any = pipe(
        clip, "neon outlines", method="prune:motion=off", control=Controls(masks), seed=0
    )
    same = all(
        torch.equal(stats.keep, masks.block(stats.block)) for stats in again.blocks if stats.block
    )
    print(f"{len(again.blocks)} blocks with another prompt, the same patches computed: {same}")

    left = Region(Box(0, 0, 0.5, 1), mode="only")  # the left half, in shares of the picture
    confined: Any = pipe(clip, "neon outlines", control=Controls(left), seed=0)
    change = np.abs(confined.frames[0] - clip / 255).mean((0, 1, 3))
    there, beyond = 255 * change[:64].mean(), 255 * change[96:].mean()
    print(f"changed by {there:.0f} levels there, {beyond:.0f} beyond")


if __name__ == "__main__":
    main()
