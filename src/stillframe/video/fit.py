"""Fit frames of any size to the grid of a model, and back.

A model works on multiples of something (8 pixels a latent, 2 latents a token: 16). The working size
is the size of the output; the padded size is what the model sees. Knows tensors, not files and not
models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["USUAL_SIZE", "Fit", "fit_to_grid"]

_SMALLEST = 16

#: Width and height of most videos, where nobody says what comes.
USUAL_SIZE = 1920, 1080


class Fit(NamedTuple):
    """How frames of one size become frames of a model's size.

    Attributes:
        source_width, source_height: of the frames that come in, in pixels.
        width, height: of the frames that go out, even; the working size.
        padded_width, padded_height: of what the model sees, multiples of its grid.
    """

    source_width: int
    source_height: int
    width: int
    height: int
    padded_width: int
    padded_height: int

    @property
    def is_scaled(self) -> bool:
        """Whether frames are resampled. An odd row or column is cut off without resampling."""
        even = (
            self.source_width - self.source_width % 2,
            self.source_height - self.source_height % 2,
        )
        return even != (self.width, self.height)

    def to_grid(self, frames: Tensor) -> Tensor:
        """uint8 (T, source_height, source_width, 3) -> float32 (T, 3, padded_height, padded_width).

        Values are in [0, 1]. Scaling is bicubic and antialiased; padding repeats the last column to
        the right and the last row below. Stays on the device of `frames`.

        Raises:
            ValueError: `frames` are of another shape or type.
        """
        expected = (self.source_height, self.source_width, 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, not uint8 (T, "
                f"{', '.join(map(str, expected))})"
            )
        pictures = frames.permute(0, 3, 1, 2).to(torch.float32) / 255
        if self.is_scaled:
            size = (self.height, self.width)
            pictures = functional.interpolate(pictures, size, mode="bicubic", antialias=True)
            pictures = pictures.clamp(0, 1)
        pictures = pictures[..., : self.height, : self.width]
        padding = (0, self.padded_width - self.width, 0, self.padded_height - self.height)
        return functional.pad(pictures, padding, mode="replicate").contiguous()

    def from_grid(self, pictures: Tensor) -> Tensor:
        """Float (T, 3, padded_height, padded_width) -> uint8 (T, height, width, 3).

        Cuts the padding off, clamps to [0, 1] and rounds. With nothing scaled it undoes `to_grid`.

        Raises:
            ValueError: `pictures` are of another shape.
        """
        expected = (3, self.padded_height, self.padded_width)
        if pictures.ndim != 4 or pictures.shape[1:] != expected:
            raise ValueError(
                f"pictures are {tuple(pictures.shape)}, not (T, {', '.join(map(str, expected))})"
            )
        cut = pictures[..., : self.height, : self.width].to(torch.float32)
        levels = (cut.clamp(0, 1) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous()


def fit_to_grid(
    width: int,
    height: int,
    *,
    multiple: int = 16,
    target_height: int | None = None,
    target_width: int | None = None,
    max_short_side: int | None = None,
) -> Fit:
    """Choose the working size for frames of `width` x `height` and pad it to a grid.

    Without a target the size stays, except that an odd row or column is cut off and that a short
    side above `max_short_side` is scaled down to it. One target sets the other side by the aspect
    ratio; two targets are taken as they are. Targets win over `max_short_side`. Sizes become even.

    Args:
        width, height: of the source, in pixels.
        multiple: of the padded size, in pixels.
        target_height, target_width: of the output, in pixels; rounded to even.
        max_short_side: an upper bound for the shorter side, in pixels.

    Raises:
        ValueError: a number is not positive, or a side would be under 16 pixels.
    """
    given = (width, height, multiple, target_height, target_width, max_short_side)
    if any(number is not None and number < 1 for number in given):
        raise ValueError(f"sizes must be positive, not {given}")
    if target_width is not None or target_height is not None:
        new_width = target_width or width * (target_height or height) / height
        new_height = target_height or height * (target_width or width) / width
        size = _even(new_width), _even(new_height)
    elif max_short_side is not None and min(width, height) > max_short_side:
        scale = (max_short_side - max_short_side % 2) / min(width, height)
        size = _even(width * scale), _even(height * scale)
    else:
        size = width - width % 2, height - height % 2
    if min(size) < _SMALLEST:
        raise ValueError(
            f"{width}x{height} would become {size[0]}x{size[1]} pixels, and both sides need "
            f"{_SMALLEST} or more"
        )
    padded = tuple(-(-side // multiple) * multiple for side in size)
    return Fit(width, height, size[0], size[1], padded[0], padded[1])


def _even(length: float) -> int:
    return round(length / 2) * 2
