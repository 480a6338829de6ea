"""A long static scene: one picture with camera noise, in one corner of which something moves.

Without the corner nothing would be computed after the first block, and nothing could go wrong. Runs
are compared as latents, block by block; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.controls import Controls
from stillframe.engine.settings import StreamSettings
from stillframe.engine.stream import EditStream
from stillframe.evaluation.latents import encode
from stillframe.evaluation.layers import LatentRecorder
from stillframe.methods import Method
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["BlockError", "block_errors", "encoded_scene", "run_latents", "scene_frames"]

Pixels = NDArray[np.uint8]

_NOISE = 2.0  # grey levels, as of a webcam in daylight


class BlockError(NamedTuple):
    """Root mean square difference to another run in a block, in latent standard deviations.

    Attributes:
        moving: in the corner in which something moves.
        still: elsewhere.
    """

    moving: float
    still: float


def scene_frames(clip: Pixels, count: int, multiple: int, seed: int = 0) -> Pixels:
    """So many frames of half a clip's size: its first picture with camera noise, and in the upper
    left quarter the clip itself, back and forth.

    Args:
        clip: uint8 (T, H, W, 3), at least two frames.
        count: frames to make.
        multiple: of which the sides shall be.
        seed: of the noise.

    Raises:
        ValueError: half the clip is smaller than the multiple, or it has one frame.
    """
    frames, height, width, _ = clip.shape
    h, w = (side // 2 // multiple * multiple for side in (height, width))
    if not (h and w) or frames < 2:
        raise ValueError(
            f"a long still takes 2 frames of {2 * multiple} pixels a side, got {frames} of "
            f"{width}x{height}"
        )
    half = clip[:, : 2 * h, : 2 * w].reshape(frames, h, 2, w, 2, 3).mean((2, 4))
    generator = np.random.default_rng(seed)
    there_and_back = [*range(frames), *range(frames - 2, 0, -1)]
    made = []
    for t in range(count):
        picture = half[0].copy()
        moving = half[there_and_back[t % len(there_and_back)]]
        picture[: h // 2, : w // 2] = moving[: h // 2, : w // 2]
        picture += generator.normal(0.0, _NOISE, picture.shape)
        made.append(picture.round().clip(0, 255).astype(np.uint8))
    return np.stack(made)


def encoded_scene(pipe: CausalWanPipeline, clip: Pixels, blocks: int) -> list[Tensor]:
    """Latents (1, C, S, h, w) of so many blocks of `scene_frames`."""
    count = blocks * pipe.timeline.later_frames
    return encode(pipe, scene_frames(clip, count, pipe.frame_multiple)).blocks[:blocks]


def run_latents(
    pipe: CausalWanPipeline,
    blocks: Sequence[Tensor],
    embeds: Tensor,
    settings: StreamSettings,
    method: Method,
    control: Controls | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Edited latents, block by block, of a stream over latents."""
    result = LatentRecorder(pipe.denoiser.latent_channels)
    stream = EditStream(
        pipe.denoiser,
        result,  # type: ignore[arg-type]
        pipe.text(None, embeds),
        method,
        settings,
        torch.Generator().manual_seed(seed),
        control=control,
    )
    for latents in blocks:
        stream.edit_block(latents)
    return result.blocks


def block_errors(run: Sequence[Tensor], dense: Sequence[Tensor]) -> list[BlockError]:
    """Errors of a run against another, block by block."""
    found = []
    for own, other in zip(run, dense, strict=True):
        square = (own - other).double().square().mean((0, 1, 2))
        h, w = square.shape
        corner = torch.zeros_like(square, dtype=torch.bool)
        corner[: h // 2, : w // 2] = True
        moving, still = (float(square[area].mean().sqrt()) for area in (corner, ~corner))
        found.append(BlockError(moving, still))
    return found
