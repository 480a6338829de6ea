"""What callers hand to streams, checked before any work: frames, prompt embeddings, generators.

Knows shapes and numbers, not models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stillframe.errors import ModelError

__all__ = [
    "Generators",
    "check_channels",
    "check_embeds",
    "check_generators",
    "read_frames",
    "unit_range",
]

Generators = torch.Generator | list[torch.Generator] | None

#: What filters may overshoot by: one level of 8 bits.
_OVERSHOOT = 1 / 255


def unit_range(pixels: Tensor, what: str) -> Tensor:
    """Pixels as floating-point numbers in [0, 1], bytes divided by 255.

    Args:
        pixels: of any shape.
        what: their name for messages, in the plural.

    Raises:
        ValueError: they are other integers, not finite, or out of range.
    """
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        kind = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(f"{what} are uint8 or floating-point numbers in [0, 1], got {kind}")
    if not pixels.numel():
        return pixels
    low, high = (float(x) for x in pixels.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~pixels.isfinite()).sum())
        raise ValueError(f"{what} hold {count} numbers that are not finite")
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise ValueError(f"{what} are in [0, 1] or uint8, got numbers from {low:g} to {high:g}")
    return pixels


def read_frames(frames: Any, multiple: int) -> Tensor:
    """Frames of a stream, (B, T, 3, H, W) in [0, 1], from those or from bytes.

    Args:
        frames: what was pushed.
        multiple: sides must be multiples of so many pixels.

    Raises:
        ValueError: they are something else, or sides do not fit.
    """
    if not isinstance(frames, Tensor):
        raise ValueError(f"frames are a tensor (B, T, 3, H, W), got {type(frames).__name__}")
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames are (B, T, 3, H, W), got {tuple(frames.shape)}")
    height, width = frames.shape[-2:]
    if not (height and width) or height % multiple or width % multiple:
        raise ValueError(f"frames must have sides in multiples of {multiple}, got {width}x{height}")
    return unit_range(frames, "frames")


def check_generators(generator: Any, batch: int | None = None) -> None:
    """Refuse what is no source of noise.

    Args:
        generator: None, a ``torch.Generator``, or a list with one for each video.
        batch: how many videos there are, where that is known.

    Raises:
        ValueError: it is something else, or there are too few or too many.
    """
    several = isinstance(generator, list | tuple)
    for one in generator if several else [generator]:
        if not isinstance(one, torch.Generator) and (several or one is not None):
            raise ValueError(
                f"generator is a torch.Generator or a list of them, got {type(one).__name__}"
            )
    if several and batch is not None and len(generator) != batch:
        raise ValueError(f"there are {len(generator)} generators for a batch of {batch}")


def check_embeds(embeds: Any, width: int) -> None:
    """Refuse what are no embeddings (B, L, width) of a prompt.

    Raises:
        ValueError: they have another shape, or numbers that are not finite.
    """
    if not isinstance(embeds, Tensor):
        raise ValueError(f"prompt_embeds are a tensor, got {type(embeds).__name__}")
    if embeds.ndim != 3 or embeds.shape[2] != width or 0 in embeds.shape:
        raise ValueError(f"prompt_embeds are (B, L, {width}), got {tuple(embeds.shape)}")
    if not embeds.is_floating_point() or not bool(embeds.isfinite().all()):
        raise ValueError("prompt_embeds are finite floating-point numbers")


def check_channels(made: int, taken: int) -> None:
    """Refuse an autoencoder whose latents are not those that the transformer is for.

    Args:
        made, taken: channels of the one's latents, and of the other's.

    Raises:
        ModelError: they are not the same.
    """
    if made != taken:
        raise ModelError(
            f"the autoencoder makes latents of {made} channels and the transformer takes {taken}: "
            f"they belong to different models"
        )
