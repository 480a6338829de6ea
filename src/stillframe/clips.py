"""Clips as callers have them and want them back: any video to a tensor, and a tensor to any video.

Knows what diffusers' users pass around. It does not know models, nor what is done to a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from stillframe.engine import BlockStats

__all__ = ["CausalWanPipelineOutput", "check_output_type", "pack_clip", "read_clip"]


@dataclass
class CausalWanPipelineOutput(BaseOutput):
    """Result of a `CausalWanPipeline` call.

    Attributes:
        frames: edited or generated video, of as many frames as came in or were asked for; type by
            ``output_type``: "np" (B, T, H, W, 3) in [0, 1], "pt" (B, T, 3, H, W), "pil" a list of
            lists.
        blocks: one `BlockStats` a block.
    """

    frames: Any
    blocks: list[BlockStats]


def check_output_type(output_type: str) -> None:
    """Refuse what `pack_clip` cannot make, before any work is done.

    Raises:
        ValueError: it is neither "np", "pt" nor "pil".
    """
    if output_type not in ("np", "pt", "pil"):
        raise ValueError(f"output_type is 'np', 'pt' or 'pil', got {output_type!r}")


def pack_clip(
    frames: Tensor,
    blocks: list[BlockStats],
    processor: VideoProcessor,
    output_type: str,
    return_dict: bool,
) -> CausalWanPipelineOutput | tuple[Any, list[BlockStats]]:
    """Frames (B, T, 3, H, W) in [0, 1] as a call returns them."""
    result = processor.postprocess_video(
        frames.float().transpose(1, 2) * 2 - 1, output_type=output_type
    )
    if not return_dict:
        return result, blocks
    return CausalWanPipelineOutput(frames=result, blocks=blocks)


def read_clip(
    video: Any, processor: VideoProcessor, multiple: int, height: int | None, width: int | None
) -> Tensor:
    """Any video to (B, T, 3, H, W) in [0, 1], scaled to ``height`` x ``width`` if given.

    Args:
        video: list of PIL images, array (T, H, W, 3), tensor (T, 3, H, W), or a batch of these.
        processor: diffusers' way from there to a tensor.
        multiple: sides are cut down to multiples of so many pixels.
        height, width: of the result, in pixels; None for the video's own.

    Raises:
        ValueError: for an empty video, what is no video, or a size that does not fit the grid.
    """
    if _is_empty(video):
        raise ValueError("the video has 0 frames")
    size = _size(video)
    for side in (height, width):
        if side is not None and (side < 1 or side % multiple):
            raise ValueError(f"height and width must be multiples of {multiple}, got {side}")
    if min(height or size[0], width or size[1]) < multiple:
        raise ValueError(
            f"a video of {size[1]}x{size[0]} is smaller than one token of {multiple}x{multiple}"
        )
    pixels: Tensor = processor.preprocess_video(_floats(video), height=height, width=width)
    return ((pixels + 1) / 2).transpose(1, 2)


def _is_empty(video: Any) -> bool:
    """Whether there is not a single frame in it."""
    if isinstance(video, np.ndarray | Tensor):
        return 0 in video.shape
    return isinstance(video, list | tuple) and (not video or any(map(_is_empty, video)))


def _size(video: Any) -> tuple[int, int]:
    """Height and width of the frames of any video."""
    while isinstance(video, list | tuple):
        video = video[0]
    if isinstance(video, Tensor):
        return video.shape[-2], video.shape[-1]
    if isinstance(video, np.ndarray):
        return video.shape[-3], video.shape[-2]
    if isinstance(video, PIL.Image.Image):
        return video.height, video.width
    raise ValueError(f"a video is made of images, arrays or tensors, got {type(video).__name__}")


def _floats(video: Any) -> Any:
    """Bytes to numbers in [0, 1], however deep in lists; everything else as it is."""
    if isinstance(video, list | tuple):
        return [_floats(part) for part in video]
    if isinstance(video, np.ndarray) and video.dtype == np.uint8:
        return video.astype(np.float32) / 255
    if isinstance(video, Tensor) and video.dtype == torch.uint8:
        return video.float() / 255
    return video
