"""A convolution of the tiny autoencoder with what surrounds it, as one kernel and its reference.

Around each of its convolutions the autoencoder joins frames with their predecessors, pools or grows
time, enlarges the picture, adds and cuts off; apart, these move more memory than the convolutions
themselves. Here they are part of how a convolution reads and writes. It knows frames with channels
last, not the autoencoder: ``autoencoders/tiny_fused.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Convolution", "available", "convolve", "convolve_reference"]

_LEAST = 16  # the least side of a matrix that tensor cores take


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution over (F, H, W, C) frames, time first, then batch; the picture's edge is zero.

    Attributes:
        weight: (G, 3, 3, N, sources*C) where ``grow`` is G, else G is 1.
        bias: (N,) or None.
        sources: frames that one is made of.
        past: the second source is the frame before, of the same video; else sources are successive
            frames that are pooled to one.
        stride: 1 or 2, of rows and columns.
        enlarge: every pixel of the input is a square of four first.
        relu: cut off below 0, after adding what is added.
    """

    weight: Tensor
    bias: Tensor | None = None
    sources: int = 1
    past: bool = False
    stride: int = 1
    enlarge: bool = False
    relu: bool = False
    packed: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "packed", _packed(self))

    @property
    def grow(self) -> int:
        """Frames that are made of one."""
        return len(self.weight)

    @property
    def channels(self) -> int:
        """C of a source."""
        return self.weight.shape[4] // self.sources

    @property
    def width(self) -> int:
        """N, channels that come out."""
        return self.weight.shape[3]

    def shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Of what comes out for frames ``x``."""
        frames, height, width = x.shape[:3]
        if not self.past:
            frames //= self.sources
        scale = 2 if self.enlarge else 1
        height, width = (-(-side * scale // self.stride) for side in (height, width))
        return frames * self.grow, height, width, self.width


def _packed(convolution: Convolution) -> Tensor:
    """Weights as the kernel reads them: (G * parts, taps * sources * C, N up to a multiple of 16).

    Where the picture is enlarged, the nine taps of an output pixel fall on four pixels of the
    input, which four depends on whether its row and column are even: four parts, their taps summed.
    """
    weight = convolution.weight.permute(0, 1, 2, 4, 3).float()
    if convolution.enlarge:
        # an even row looks at the one above once and at its own twice, an odd one the other way
        fold = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        weight = torch.einsum("pak,qbl,gklcn->gpqabcn", fold, fold, weight).flatten(0, 2)
    packed = weight.flatten(1, 3)
    packed = F.pad(packed, (0, -packed.shape[2] % _LEAST))
    return packed.to(convolution.weight.dtype).contiguous()


def available() -> bool:
    """Whether there are kernels at all."""
    return triton is not None


def convolve_reference(
    convolution: Convolution,
    x: Tensor,
    past: Tensor | None = None,
    added: Tensor | None = None,
    batch: int = 1,
) -> Tensor:
    """The slow reference of `convolve`: joins, enlarges, convolves, adds, cuts off."""
    if convolution.past:
        assert past is not None
        x = torch.cat([x, torch.cat([past, x[:-batch]])], 3)
    elif convolution.sources > 1:
        steps = x.unflatten(0, (-1, convolution.sources, batch)).unbind(1)
        x = torch.cat([step.flatten(0, 1) for step in steps], 3)
    x = x.permute(0, 3, 1, 2)
    if convolution.enlarge:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    grown = [
        F.conv2d(x, weight.permute(2, 3, 0, 1), convolution.bias, convolution.stride, 1)
        for weight in convolution.weight
    ]
    y = torch.stack([frames.unflatten(0, (-1, batch)) for frames in grown], 1).flatten(0, 2)
    y = y.permute(0, 2, 3, 1)
    y = y if added is None else y + added
    return (y.relu() if convolution.relu else y).contiguous()


def convolve(
    convolution: Convolution,
    x: Tensor,
    past: Tensor | None = None,
    added: Tensor | None = None,
    batch: int = 1,
) -> Tensor:
    """Convolve frames.

    Args:
        convolution: how.
        x: (F, H, W, C) contiguous, in the order time, batch.
        past: (batch, H, W, C) frames before the first ones, where the convolution sees the past.
        added: added to the result, of its shape.
        batch: videos among the frames.

    Returns:
        frames, see `Convolution.shape`.
    """
    shape = convolution.shape(x)
    countable = max(x.numel(), prod(shape)) < 2**31  # the kernel counts in 32 bits
    if triton is None or not (x.is_cuda or _INTERPRETED) or not countable:
        return convolve_reference(convolution, x, past, added, batch)
    out = torch.empty(shape, device=x.device, dtype=x.dtype)
    packed, depth = convolution.packed, convolution.channels
    parts = 4 if convolution.enlarge else 1
    # rows of the product: pixels of one part of one of the frames that are made of one
    frames, height, width = shape[0] // convolution.grow, *shape[1:3]
    if convolution.enlarge:
        height, width = height // 2, width // 2
    rows, columns = _tile(convolution.width, depth)
    grid = (
        triton.cdiv(frames * height * width, rows),
        triton.cdiv(convolution.width, columns),
        convolution.grow * parts,
    )
    _convolve[grid](
        x,
        x if past is None else past,
        packed,
        packed if convolution.bias is None else convolution.bias,
        x if added is None else added,
        out,
        frames,
        height,
        width,
        x.shape[1],
        x.shape[2],
        batch,
        C=depth,
        N=convolution.width,
        PADDED=packed.shape[2],
        SOURCES=convolution.sources,
        PAST=convolution.past,
        STRIDE=convolution.stride,
        ENLARGE=convolution.enlarge,
        GROW=convolution.grow,
        BIAS=convolution.bias is not None,
        ADD=added is not None,
        RELU=convolution.relu,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=next(size for size in (64, 32, 16) if depth % size == 0),
        num_warps=4,
        num_stages=_STAGES,
    )
    return out


_STAGES = 3


def _tile(width: int, depth: int) -> tuple[int, int]:
    """Rows and columns that a program makes, the fastest of a few on an H100."""
    columns = min(128, max(_LEAST, triton.next_power_of_2(width)))
    return 64 if columns == 128 or depth < 64 else 128, columns


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _convolve(
        x, past, weight, bias, added, out, frames, height, width, in_height, in_width, batch,
        C: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr, SOURCES: tl.constexpr,
        PAST: tl.constexpr, STRIDE: tl.constexpr, ENLARGE: tl.constexpr, GROW: tl.constexpr,
        BIAS: tl.constexpr, ADD: tl.constexpr, RELU: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        TAPS: tl.constexpr = 2 if ENLARGE else 3
        CHUNKS: tl.constexpr = C // DEPTH
        which = tl.program_id(2)
        pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        frame = pixel // (height * width)
        y = pixel // width % height
        z = pixel % width
        n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        c = tl.arange(0, DEPTH)
        down, right = 0, 0
        if ENLARGE:
            down, right = which % 4 // 2, which % 2
        first_frame = frame
        if SOURCES > 1 and not PAST:
            first_frame = frame // batch * SOURCES * batch + frame % batch
        before = tl.where(frame < batch, frame, frame - batch)
        rows = weight + which * (TAPS * TAPS * SOURCES * C * PADDED)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for i in range(TAPS * TAPS * SOURCES * CHUNKS):
            chunk = i % CHUNKS
            source = i // CHUNKS % SOURCES
            tap = i // (CHUNKS * SOURCES)
            row = y * STRIDE + tap // TAPS - 1 + down
            column = z * STRIDE + tap % TAPS - 1 + right
            seen = (frame < frames) & (row >= 0) & (row < in_height)
            seen &= (column >= 0) & (column < in_width)
            if PAST:
                other = tl.where(frame < batch, past, x)
                at = tl.where(source == 0, x, other)
                taken = tl.where(source == 0, frame, before)
            else:
                at, taken = x, first_frame + source * batch
            at += ((taken * in_height + row) * in_width + column) * C
            a = tl.load(at[:, None] + (chunk * DEPTH + c)[None, :], seen[:, None], 0.0)
            b = tl.load(
                rows + (i * DEPTH + c)[:, None] * PADDED + n[None, :], (n < PADDED)[None, :], 0.0
            )
            sums = tl.dot(a, b, sums, input_precision="ieee")
        if BIAS:
            sums += tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
        if ENLARGE:
            made = which // 4
            y, z, height, width = y * 2 + down, z * 2 + right, height * 2, width * 2
        else:
            made = which
        new_frame = (frame // batch * GROW + made) * batch + frame % batch
        to = (((new_frame * height + y) * width + z) * N)[:, None] + n[None, :]
        valid = (frame < frames)[:, None] & (n < N)[None, :]
        if ADD:
            sums += tl.load(added + to, valid, 0.0).to(tl.float32)
        if RELU:
            sums = tl.maximum(sums, 0.0)
        tl.store(out + to, sums.to(out.dtype.element_ty), valid)
