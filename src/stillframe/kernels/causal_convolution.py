"""A convolution over time and space at listed cells or everywhere, as kernels and their reference.

Frames lie with channels last in buffers that have what was before and a border of zeros, so that a
product reads its rows without asking where the picture ends. Enlarging the picture, pooling and
growing time, bias and the residual sum are part of how it reads and writes. It knows such buffers,
not the autoencoder: ``autoencoders/wan_fused.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.frames import CellList, Frames, padded_channels, scratch

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["CausalConvolution", "Tile", "convolve", "convolve_reference"]


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

    @cached_property
    def channels_last(self) -> Tensor:
        """Weights as cuDNN reads them."""
        with torch.inference_mode(False), torch.no_grad():
            return self.weight.contiguous(memory_format=torch.channels_last_3d)

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
        scale = 2 if self.enlarge else 1
        height, width = (side * scale // self.stride for side in (height, width))
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


def convolve_reference(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames | None = None,
    added: Frames | None = None,
    cells: CellList | None = None,
    side: int = 1,
) -> Frames:
    """The slow reference of `convolve`: everything, of which the cells' pixels are taken."""
    frames = x.everything[..., : convolution.channels].permute(0, 4, 1, 2, 3)
    edge = convolution.border
    if convolution.enlarge:
        frames = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
    begin = 0 if convolution.stride > 1 else edge
    frames = F.pad(frames, (begin, edge, begin, edge))
    stride = convolution.pool, convolution.stride, convolution.stride
    y = F.conv3d(frames, convolution.weight, convolution.bias, stride)
    if convolution.grow > 1:
        y = torch.stack(y.unflatten(1, (convolution.grow, -1)).unbind(1), 3).flatten(2, 3)
    y = y.permute(0, 2, 3, 4, 1)
    if added is not None:
        y = y + added.latest[..., : y.shape[4]]
    out = scratch(y, convolution.shape(x)) if out is None else out
    to = out.latest[..., : y.shape[4]]
    to.copy_(y if cells is None else torch.where(cells.mask(side * _scale(convolution)), y, to))
    return out


def convolve(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames | None = None,
    added: Frames | None = None,
    cells: CellList | None = None,
    side: int = 1,
) -> Frames:
    """Convolve frames, of which those before are `past` and which have a `border` where it looks.

    Args:
        convolution: how.
        x: (B, T, H, W, C).
        out: where to, see `CausalConvolution.shape`; None for frames that are made for it, of which
            only what is computed is anything.
        added: added to it, of its shape; may be ``out`` itself.
        cells: where it is computed; elsewhere ``out`` stays. None for everywhere.
        side: pixels along the side of a cell of what comes out, before it is enlarged.

    Returns:
        ``out``.
    """
    kernels = triton is not None and (x.base.is_cuda or _INTERPRETED)
    if cells is None and out is None and x.base.is_cuda and _library(convolution):
        return _convolve_library(convolution, x, added)
    out = scratch(x.base, convolution.shape(x)) if out is None else out
    if kernels and _countable(x, out, added):
        _launch(convolution, x, out, added, cells, side)
    elif cells is None or x.base.is_cuda:
        convolve_reference(convolution, x, out, added, cells, side)
    elif len(cells):
        _convolve_rows(convolution, x, out, added, cells, side)
    return out


def _library(convolution: CausalConvolution) -> bool:
    """Whether cuDNN is faster than `_convolve` on an H100 where everything is computed."""
    return False


def _convolve_library(convolution: CausalConvolution, x: Frames, added: Frames | None) -> Frames:
    flags = {"benchmark": True, "allow_tf32": torch.backends.cudnn.allow_tf32}
    with torch.backends.cudnn.flags(enabled=True, **flags):
        frames = x.base.permute(0, 4, 1, 2, 3)
        y = F.conv3d(frames, convolution.channels_last, convolution.bias).permute(0, 2, 3, 4, 1)
    return Frames(y if added is None else y.add_(added.latest[..., : y.shape[4]]))


def _scale(convolution: CausalConvolution) -> int:
    return 2 if convolution.enlarge else 1


def _countable(*frames: Frames | None) -> bool:
    """Whether 32 bits, in which kernels count, are enough."""
    return all(x is None or x.base.numel() < 2**31 for x in frames)


class _Taps(NamedTuple):
    """How a product reads: taps, and where the first one is of a pixel, its frame, row, column."""

    frames: int
    sides: int
    parts: int


def _taps(convolution: CausalConvolution) -> _Taps:
    frames, side = convolution.weight.shape[2:4]
    return _Taps(frames, 2 if convolution.enlarge else side, 4 if convolution.enlarge else 1)


# numbers gathered at once, for a product on a CPU: more do not stay in its cache
_GATHERED = 2**20


def _convolve_rows(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames,
    added: Frames | None,
    cells: CellList,
    side: int,
) -> None:
    """Cells' rows gathered for one product a part, a few thousand at a time."""
    taps, packed = _taps(convolution), convolution.packed
    depth = packed.shape[1] * packed.shape[2]
    origins = x.places(cells, side, convolution.stride)
    begin = 0 if convolution.stride > 1 or not convolution.border else -1
    line = x.base.shape[3]
    frames = torch.arange(taps.frames).view(-1, 1, 1) * x.area
    lines = torch.arange(taps.sides)
    steps = (frames + (lines.view(-1, 1) + begin) * line + lines + begin).flatten()
    bias = F.pad(convolution.bias, (0, packed.shape[3] - len(convolution.bias)))
    count = (x.base.shape[1] - x.past) // convolution.pool
    scale = _scale(convolution)
    for part in range(taps.parts):
        down, right = part // 2, part % 2
        weight = packed[part].view(depth, -1)
        to = _enlarged(out, cells, side, scale, down, right)
        other = None if added is None else _enlarged(added, cells, side, scale, down, right)
        for i in range(count):
            at = origins + (i * convolution.pool * x.area + down * line + right)
            for rows in torch.arange(len(at)).split(max(64, _GATHERED // depth)):
                some = slice(int(rows[0]), int(rows[-1]) + 1)
                index = (at[some].unsqueeze(1) + steps).flatten()
                y = torch.addmm(bias, x.rows.index_select(0, index).view(-1, depth), weight)
                for j in range(convolution.grow):
                    frame = i * convolution.grow + j
                    z = y[:, j * convolution.width : (j + 1) * convolution.width]
                    _write(out, to[some], frame, z, added, None if other is None else other[some])


def _enlarged(
    frames: Frames, cells: CellList, side: int, scale: int, down: int, right: int
) -> Tensor:
    return frames.places(cells, side, scale) + down * frames.base.shape[3] + right


def _write(
    out: Frames, to: Tensor, frame: int, y: Tensor, added: Frames | None, other: Tensor | None
) -> None:
    if added is not None and other is not None:
        at = other + (frame + added.past) * added.area
        y = y + added.rows.index_select(0, at)[:, : y.shape[1]]
    if y.shape[1] < out.base.shape[4]:
        y = F.pad(y, (0, out.base.shape[4] - y.shape[1]))
    out.rows.index_copy_(0, to + (frame + out.past) * out.area, y)


class Tile(NamedTuple):
    """What a program makes.

    Attributes:
        rows: pixels.
        columns, more: channels, as two powers of two; ``more`` may be 0.
        pair: whether of two frames, which share what they look at.
        depth: channels read at once.
        warps, stages: see Triton's ``num_warps`` and ``num_stages``.
        vector: numbers that a thread copies at once; what is copied by less than 16 bytes stays in
            the first level of caches.
    """

    rows: int
    columns: int
    more: int
    pair: bool
    depth: int
    warps: int
    stages: int
    vector: int = 8


def tile_of(convolution: CausalConvolution) -> Tile:
    """The fastest of a few on an H100."""
    width, channels = convolution.weight.shape[0], convolution.packed.shape[2]
    columns = max(16, triton.next_power_of_2(width))
    if convolution.weight.dtype.itemsize > 2:  # nothing that tensor cores take
        return Tile(64, min(64, columns), 0, False, 16, 4, 2)
    depth = next(size for size in (64, 32, 16) if channels % size == 0)
    stages = 3 if depth == 64 else 4
    if width == 96:
        return Tile(128, 64, 32, False, depth, 8, stages)
    if width == 192:
        return Tile(128, 128, 64, False, depth, 8, stages)
    return Tile(128, min(128, columns), 0, False, depth, 8 if columns >= 64 else 4, stages)


def _launch(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames,
    added: Frames | None,
    cells: CellList | None,
    side: int,
    tile: Tile | None = None,
) -> None:
    taps, packed = _taps(convolution), convolution.packed
    given, to = x.everything, out.latest
    other = to if added is None else added.latest
    frames = (given.shape[1] - x.past) // convolution.pool
    tile = tile or tile_of(convolution)
    # rows of the product: pixels of one part of what comes out
    batch, _, height, width, _ = convolution.shape(x)
    height, width = height // _scale(convolution), width // _scale(convolution)
    groups = frames // 2 if tile.pair else frames
    columns = triton.cdiv(convolution.weight.shape[0], tile.columns + tile.more)
    places = height * width // side**2
    tiles = triton.cdiv(batch * height * width, tile.rows)
    _convolve[(columns * groups * taps.parts * tiles,)](
        given,
        packed,
        convolution.bias,
        other,
        to,
        packed if cells is None else cells.numbers,
        packed if cells is None else cells.count,
        batch * height * width,
        places,
        width // side,
        *(stride // tile.vector for stride in given.stride()[:4]),
        *other.stride()[:4],
        *to.stride()[:4],
        C=packed.shape[2],
        N=convolution.weight.shape[0],
        PADDED=packed.shape[3],
        TIMES=taps.frames,
        TAPS=taps.sides,
        BEGIN=0 if convolution.stride > 1 or not convolution.border else -1,
        STRIDE=convolution.stride,
        POOL=convolution.pool,
        WIDTH=convolution.width,
        GROW=convolution.grow,
        ENLARGE=convolution.enlarge,
        GROUPS=groups,
        SPLITS=columns,
        SIDE=side,
        LISTED=cells is not None,
        ADD=added is not None,
        PAIR=tile.pair,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        MORE=tile.more,
        DEPTH=tile.depth,
        VECTOR=tile.vector,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _part(at, n, PADDED: tl.constexpr, EVEN: tl.constexpr):
        """(DEPTH, columns) of the weights, whose rows begin at ``at``."""
        if EVEN:
            b = tl.load(at + n[None, :])
        else:
            b = tl.load(at + n[None, :], (n < PADDED)[None, :], 0.0)
        return b

    @triton.jit
    def _finish(
        sums, bias, added, out, n, frame, other, to, valid, at, ot,
        N: tl.constexpr, WIDTH: tl.constexpr, GROW: tl.constexpr, ADD: tl.constexpr,
    ):  # fmt: skip
        """Bias and sum, written."""
        sums += tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
        if GROW == 1:
            channel, made = n, frame
        else:
            channel, made = n % WIDTH, frame * GROW + n // WIDTH
        inside = valid[:, None] & (n < N)[None, :]
        if ADD:
            more = tl.load(added + other[:, None] + (made * at + channel)[None, :], inside, 0.0)
            sums += more.to(tl.float32)
        tl.store(
            out + to[:, None] + (made * ot + channel)[None, :],
            sums.to(out.dtype.element_ty),
            inside,
        )

    # strides of what is read count in vectors: the compiler is to know no better
    @triton.jit(do_not_specialize=["xb", "xt", "xy", "xx"])
    def _convolve(
        x, weight, bias, added, out, numbers, count, total, places, across,
        xb, xt, xy, xx, ab, at, ay, ax, ob, ot, oy, ox,
        C: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr, TIMES: tl.constexpr,
        TAPS: tl.constexpr, BEGIN: tl.constexpr, STRIDE: tl.constexpr, POOL: tl.constexpr,
        WIDTH: tl.constexpr, GROW: tl.constexpr, ENLARGE: tl.constexpr, GROUPS: tl.constexpr,
        SPLITS: tl.constexpr, SIDE: tl.constexpr, LISTED: tl.constexpr, ADD: tl.constexpr,
        PAIR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr,
        DEPTH: tl.constexpr, VECTOR: tl.constexpr,
    ):  # fmt: skip
        xb, xt, xy, xx = xb * VECTOR, xt * VECTOR, xy * VECTOR, xx * VECTOR
        CHUNKS: tl.constexpr = C // DEPTH
        AREA: tl.constexpr = TAPS * TAPS * C  # rows of weights of a frame
        EVEN: tl.constexpr = PADDED % (COLUMNS + MORE) == 0
        PARTS: tl.constexpr = 4 if ENLARGE else 1
        which = tl.program_id(0)
        split = which % SPLITS
        group = which // SPLITS % GROUPS
        part = which // (SPLITS * GROUPS) % PARTS
        first = which // (SPLITS * GROUPS * PARTS) * ROWS
        if LISTED:
            total = tl.load(count) * (SIDE * SIDE)
        if first >= total:
            return
        # cell by cell, so that what one pixel looks at was just looked at by another
        pixel = first + tl.arange(0, ROWS)
        valid = pixel < total
        pixel = tl.minimum(pixel, total - 1)
        cell = pixel // (SIDE * SIDE)
        if LISTED:
            cell = tl.load(numbers + cell)
        place = cell % places
        within = pixel % (SIDE * SIDE)
        video = cell // places
        y = place // across * SIDE + within // SIDE
        z = place % across * SIDE + within % SIDE
        down, right = part // 2, part % 2
        frame = group * 2 if PAIR else group
        begin = video * xb + (y * STRIDE + BEGIN + down) * xy + (z * STRIDE + BEGIN + right) * xx
        c = tl.arange(0, DEPTH)
        rows = x + (frame * POOL * xt + begin)[:, None] + c[None, :]
        n = split * (COLUMNS + MORE) + tl.arange(0, COLUMNS)
        m = split * (COLUMNS + MORE) + COLUMNS + tl.arange(0, MORE if MORE else 1)
        w = weight + part * (TIMES * AREA * PADDED)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        if PAIR:
            next_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        if MORE:
            more = tl.zeros((ROWS, MORE), tl.float32)
            if PAIR:
                next_more = tl.zeros((ROWS, MORE), tl.float32)
        if PAIR:
            for i in range(TAPS * TAPS * CHUNKS):
                chunk, tap = i // (TAPS * TAPS), i % (TAPS * TAPS)
                a = rows + (tap // TAPS * xy + tap % TAPS * xx + chunk * DEPTH)
                b = w + (tap * C + chunk * DEPTH + c)[:, None] * PADDED
                a0 = tl.load(a)
                a1 = tl.load(a + xt)
                a2 = tl.load(a + 2 * xt)
                a3 = tl.load(a + 3 * xt)
                b0 = _part(b, n, PADDED, EVEN)
                b1 = _part(b + AREA * PADDED, n, PADDED, EVEN)
                b2 = _part(b + 2 * AREA * PADDED, n, PADDED, EVEN)
                sums = tl.dot(a0, b0, sums, input_precision="ieee")
                next_sums = tl.dot(a1, b0, next_sums, input_precision="ieee")
                sums = tl.dot(a1, b1, sums, input_precision="ieee")
                next_sums = tl.dot(a2, b1, next_sums, input_precision="ieee")
                sums = tl.dot(a2, b2, sums, input_precision="ieee")
                next_sums = tl.dot(a3, b2, next_sums, input_precision="ieee")
                if MORE:
                    e0 = _part(b, m, PADDED, EVEN)
                    e1 = _part(b + AREA * PADDED, m, PADDED, EVEN)
                    e2 = _part(b + 2 * AREA * PADDED, m, PADDED, EVEN)
                    more = tl.dot(a0, e0, more, input_precision="ieee")
                    next_more = tl.dot(a1, e0, next_more, input_precision="ieee")
                    more = tl.dot(a1, e1, more, input_precision="ieee")
                    next_more = tl.dot(a2, e1, next_more, input_precision="ieee")
                    more = tl.dot(a2, e2, more, input_precision="ieee")
                    next_more = tl.dot(a3, e2, next_more, input_precision="ieee")
        else:
            for i in range(TIMES * TAPS * TAPS * CHUNKS):
                # all taps of some channels, which the first level of caches holds
                chunk, tap = i // (TIMES * TAPS * TAPS), i % (TIMES * TAPS * TAPS)
                a = rows + (
                    tap // (TAPS * TAPS) * xt + tap // TAPS % TAPS * xy + tap % TAPS * xx
                    + chunk * DEPTH
                )  # fmt: skip
                b = w + (tap * C + chunk * DEPTH + c)[:, None] * PADDED
                a0 = tl.load(a)
                sums = tl.dot(a0, _part(b, n, PADDED, EVEN), sums, input_precision="ieee")
                if MORE:
                    more = tl.dot(a0, _part(b, m, PADDED, EVEN), more, input_precision="ieee")
        if ENLARGE:
            y, z = y * 2 + down, z * 2 + right
        other = video * ab + y * ay + z * ax
        to = video * ob + y * oy + z * ox
        _finish(
            sums, bias, added, out, n, frame, other, to, valid, at, ot, N, WIDTH, GROW, ADD
        )  # fmt: skip
        if PAIR:
            _finish(
                next_sums, bias, added, out, n, frame + 1, other, to, valid, at, ot,
                N, WIDTH, GROW, ADD,
            )  # fmt: skip
        if MORE:
            _finish(
                more, bias, added, out, m, frame, other, to, valid, at, ot, N, WIDTH, GROW, ADD
            )  # fmt: skip
            if PAIR:
                _finish(
                    next_more, bias, added, out, m, frame + 1, other, to, valid, at, ot,
                    N, WIDTH, GROW, ADD,
                )  # fmt: skip
