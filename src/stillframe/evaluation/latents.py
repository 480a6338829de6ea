"""Clips as latents and back, block by block, as a stream has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.errors import InputError
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.fit import Fit, fit_to_grid

__all__ = ["ClipLatents", "decode", "encode", "frame_fit"]

Pixels = NDArray[np.uint8]


class ClipLatents(NamedTuple):
    """A clip's latents.

    Attributes:
        blocks: (1, C, S, h, w) each, normalised.
        timeline: how they go together with the clip's frames.
    """

    blocks: list[Tensor]
    timeline: Timeline

    @property
    def whole(self) -> Tensor:
        """All blocks as one, (1, C, F, h, w)."""
        return torch.cat(self.blocks, 2)


def frame_fit(pipe: CausalWanPipeline, frames: Pixels) -> Fit:
    """From frames (T, H, W, 3) that are at their working size to the model's grid, and back."""
    _, height, width, _ = frames.shape
    return fit_to_grid(
        width, height, multiple=pipe.frame_multiple, target_height=height, target_width=width
    )


@torch.inference_mode()
def encode(pipe: CausalWanPipeline, frames: Pixels) -> ClipLatents:
    """Latents of the blocks that frames (T, H, W, 3) fill; a rest that fills none is left out.

    Raises:
        InputError: they fill no block.
    """
    stream = open_autoencoder(pipe.vae, pipe.config.block_frames)
    pixels = torch.from_numpy(np.array(frames)).to(pipe.compute_device)
    blocks = stream.encode(frame_fit(pipe, frames).to_grid(pixels).unsqueeze(0))
    if not blocks:
        raise InputError(f"{len(frames)} frames are too few: a block takes {stream.next_frames}")
    return ClipLatents([block.float() for block in blocks], stream.timeline)


@torch.inference_mode()
def decode(pipe: CausalWanPipeline, latents: Tensor, frames: Pixels) -> Tensor:
    """Decode whole blocks (1, C, F, h, w); float32 (T, 3, H, W) from 0 to 1, of the frames' size.

    Args:
        latents: F is a multiple of the pipeline's block.
        frames: what they were encoded from, for the size.
    """
    stream = open_autoencoder(pipe.vae, pipe.config.block_frames)
    fit = frame_fit(pipe, frames)
    parts = [stream.decode(block) for block in latents.split(stream.timeline.block_frames, 2)]
    pictures = torch.cat(parts, 1)[0, :, :, : fit.height, : fit.width]
    return pictures.float().clamp(0, 1)
