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

from stillframe.engine.inputs import unit_range
from stillframe.engine.stream import BlockStats

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
        video: list of PIL images of any mode with 8 bits, array (T, H, W, 3), tensor (T, 3, H, W),
            or a batch of these; numbers are uint8 or in [0, 1].
        processor: diffusers' way from there to a tensor.
        multiple: sides are cut down to multiples of so many pixels.
        height, width: of the result, in pixels; None for the video's own.

    Raises:
        ValueError: for an empty video, what is no video, clips that differ in length or size, or a
            size that does not fit the grid.
    """
    if _is_empty(video):
        raise ValueError("the video has 0 frames")
    clips = [_clip(part) for part in _parts(video)]
    sizes = {size for clip in clips for size in _sizes(clip)}
    scaled = height is not None and width is not None and isinstance(clips[0], list)
    if len(sizes) > 1 and not scaled:
        shown = " and ".join(f"{w}x{h}" for h, w in sorted(sizes)[:2])
        raise ValueError(f"frames of a batch are of one size, got {shown}")
    lengths = sorted({len(clip) for clip in clips})
    if len(lengths) > 1:
        raise ValueError(f"clips of a batch are equally long, got {lengths[0]} and {lengths[-1]}")
    if len({type(clip) for clip in clips}) > 1:
        raise ValueError("clips of a batch are of one kind, got images and numbers")
    _check_size(next(iter(sizes)), multiple, height, width)
    pixels: Tensor = processor.preprocess_video(clips, height=height, width=width)
    return ((pixels + 1) / 2).transpose(1, 2)


def _check_size(
    size: tuple[int, int], multiple: int, height: int | None, width: int | None
) -> None:
    for side in (height, width):
        if side is not None and (side < 1 or side % multiple):
            raise ValueError(f"height and width must be multiples of {multiple}, got {side}")
    if min(height or size[0], width or size[1]) < multiple:
        raise ValueError(
            f"a video of {size[1]}x{size[0]} is smaller than one token of {multiple}x{multiple}"
        )


def _is_empty(video: Any) -> bool:
    """Whether there is not a single frame in it."""
    if isinstance(video, np.ndarray | Tensor):
        return 0 in video.shape
    return isinstance(video, list | tuple) and (not video or any(map(_is_empty, video)))


def _parts(video: Any) -> list[Any]:
    """The clips of a batch; what is a clip by itself is the only one."""
    if isinstance(video, np.ndarray | Tensor):
        return list(video) if video.ndim == 5 else [video]
    if not isinstance(video, list | tuple):
        return [video]
    first = video[0]
    if isinstance(first, np.ndarray | Tensor) and first.ndim == 5:
        return [clip for batch in video for clip in batch]
    whole = isinstance(first, list | tuple) or (
        isinstance(first, np.ndarray | Tensor) and first.ndim == 4
    )
    return list(video) if whole else [video]


def _clip(clip: Any) -> list[PIL.Image.Image] | Tensor:
    """One clip: RGB images, or (T, 3, H, W) in [0, 1]."""
    if isinstance(clip, np.ndarray | Tensor):
        return _numbers(clip)
    frames = list(clip) if isinstance(clip, list | tuple) else [clip]
    for frame in frames:
        if not isinstance(frame, np.ndarray | Tensor | PIL.Image.Image):
            kind = type(frame).__name__
            raise ValueError(f"a video is made of images, arrays or tensors, got {kind}")
    if not isinstance(clip, list | tuple):
        raise ValueError("a video is a list of images, got a single one")
    if all(isinstance(frame, PIL.Image.Image) for frame in frames):
        return [_rgb(frame) for frame in frames]
    shapes = {getattr(frame, "shape", None) for frame in frames}
    if len(shapes) == 1 and all(isinstance(frame, Tensor) for frame in frames):
        return _numbers(torch.stack(frames))
    if len(shapes) == 1 and all(isinstance(frame, np.ndarray) for frame in frames):
        return _numbers(np.stack(frames))
    shown = " and ".join(sorted({str(tuple(shape)) for shape in shapes if shape})[:2])
    raise ValueError(f"frames of a clip are of one kind and size, got {shown}")


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in colours, without what it says of transparency."""
    if image.mode[0] in "IF":
        raise ValueError(f"images have 8 bits a channel, got one of mode {image.mode!r}")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _numbers(clip: Any) -> Tensor:
    """An array (T, H, W, 3) or a tensor (T, 3, H, W) as the latter, in [0, 1]."""
    is_array, shape = isinstance(clip, np.ndarray), tuple(clip.shape)
    layout = "(T, H, W, 3)" if is_array else "(T, 3, H, W)"
    kind = "an array" if is_array else "a tensor"
    if len(shape) != 4 or shape[-1 if is_array else 1] != 3:
        raise ValueError(f"a video as {kind} is {layout}, or a batch of these, got {shape}")
    numbers = clip
    if is_array:
        if clip.dtype.kind != "f" and clip.dtype != np.uint8:
            raise ValueError(f"the frames are uint8 or floating-point numbers, got {clip.dtype}")
        # of any byte order and length
        native = clip.dtype if clip.dtype == np.uint8 else f"f{min(clip.itemsize, 8)}"
        numbers = torch.from_numpy(np.ascontiguousarray(clip, native)).movedim(-1, 1)
    # within rounding of black, negative numbers must not look like diffusers' other range, [-1, 1]
    return unit_range(numbers, "the frames").float().clamp(0, 1)


def _sizes(clip: list[PIL.Image.Image] | Tensor) -> set[tuple[int, int]]:
    """Heights and widths of the frames of a clip."""
    if isinstance(clip, Tensor):
        return {(clip.shape[-2], clip.shape[-1])}
    return {(image.height, image.width) for image in clip}
