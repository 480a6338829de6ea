"""Convolutions over time and space, what they do beside, and their weights as kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.frames import Frames, padded_channels

__all__ = ["CausalConvolution", "Taps"]


class Taps(NamedTuple):
    """The products that a pixel is a sum of.

    Attributes:
        frames: looked at.
        sides: rows and columns looked at in each.
        parts: kinds of pixels, see `CausalConvolution.packed`.
    """

    frames: int
    sides: int
    parts: int


@dataclass(frozen=True, eq=False)
class CausalConvolution:
    """A convolution over `Frames`; the edge of the picture is zero.

    Attributes:
        weight: (N, C, KT, K, K), with KT and K of 1 or 3.
        bias: (N,).
        stride: of rows and columns, 1 or 2; the last ones then look at a zero beyond the picture.
        pool: frames that one is made of: the stride in time.
        grow: frames made of one: channels are those of the first, then those of the second.
        enlarge: every pixel is a square of four first.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    pool: int = 1
    grow: int = 1
    enlarge: bool = False

    @cached_property
    def packed(self) -> Tensor:
        """Weights as products of rows read them, see `_packed`."""
        with torch.inference_mode(False), torch.no_grad():
            return _packed(self)

    @property
    def taps(self) -> Taps:
        """What `packed` is made for."""
        frames, side = self.weight.shape[2:4]
        return Taps(frames, 2 if self.enlarge else side, 4 if self.enlarge else 1)

    @property
    def scale(self) -> int:
        """Pixels along the side of the square that is made of one."""
        return 2 if self.enlarge else 1

    @property
    def past(self) -> int:
        """Frames before the first that it looks at."""
        return self.weight.shape[2] - self.pool

    @property
    def border(self) -> int:
        """Pixels beyond the edge that it looks at."""
        return self.weight.shape[3] // 2

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    @property
    def width(self) -> int:
        """Channels of a frame that comes out."""
        return self.weight.shape[0] // self.grow

    def shape(self, x: Frames) -> tuple[int, int, int, int, int]:
        """(B, T, H, W, C) of what comes out."""
        batch, frames, height, width, _ = x.latest.shape
        height, width = (side * self.scale // self.stride for side in (height, width))
        return batch, frames // self.pool * self.grow, height, width, self.width


def _packed(convolution: CausalConvolution) -> Tensor:
    """Weights as kernels read them: (parts, KT*K*K, C, N), C and N up to multiples of 16.

    Where the picture is enlarged, the nine taps of an output pixel fall on four pixels of the
    input, which four depends on whether its row and column are even: four parts, their taps summed.
    """
    weight = convolution.weight.permute(2, 3, 4, 1, 0)
    if convolution.enlarge:
        # an even row looks at the one above once and at its own twice, an odd one the other way
        fold = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).double()
        parts = torch.einsum("pak,qbl,tklcn->pqtabcn", fold, fold, weight.double())
        weight = parts.flatten(0, 1).to(weight.dtype)
    else:
        weight = weight.unsqueeze(0)
    packed = weight.flatten(1, 3)
    channels, width = packed.shape[2:]
    padding = padded_channels(width) - width, 0, padded_channels(channels) - channels
    return F.pad(packed, (0, padding[0], 0, padding[2])).contiguous()
