"""A convolution over time and space at listed cells or everywhere, as kernels and their reference.

Frames lie with channels last in buffers that have what was before and a border of zeros, so that a
product reads its rows without asking where the picture ends. Enlarging the picture, pooling and
growing time, bias and the residual sum are part of how it reads and writes. It knows such buffers,
not the autoencoder: ``autoencoders/wan_fused.py`` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.causal_weights import CausalConvolution
from stillframe.kernels.frames import ChosenCells, Frames, scratch

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Tile", "convolve", "convolve_reference"]


def convolve_reference(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames | None = None,
    added: Frames | None = None,
    cells: ChosenCells | None = None,
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
    to.copy_(y if cells is None else torch.where(cells.mask(side * convolution.scale), y, to))
    return out


def convolve(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames | None = None,
    added: Frames | None = None,
    cells: ChosenCells | None = None,
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
    out = scratch(x.base, convolution.shape(x)) if out is None else out
    if x.base.is_meta:  # a plan, also of what kernels hold
        assert convolution.packed.is_meta
    if kernels and _countable(x, out, added):
        _launch(convolution, x, out, added, cells, side)
    elif cells is None or x.base.is_cuda:
        convolve_reference(convolution, x, out, added, cells, side)
    elif not x.base.is_meta and len(cells):
        _convolve_rows(convolution, x, out, added, cells, side)
    return out


def _countable(*frames: Frames | None) -> bool:
    """Whether 32 bits, in which kernels count, are enough."""
    return all(x is None or x.base.numel() < 2**31 for x in frames)


# numbers gathered at once, for a product on a CPU: more do not stay in its cache
_GATHERED = 2**20


def _convolve_rows(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames,
    added: Frames | None,
    cells: ChosenCells,
    side: int,
) -> None:
    """Cells' rows gathered for one product a part, a few thousand at a time."""
    taps, packed = convolution.taps, convolution.packed
    depth = packed.shape[1] * packed.shape[2]
    origins = x.places(cells, side, convolution.stride)
    begin = 0 if convolution.stride > 1 or not convolution.border else -1
    line = x.base.shape[3]
    frames = torch.arange(taps.frames).view(-1, 1, 1) * x.area
    lines = torch.arange(taps.sides)
    steps = (frames + (lines.view(-1, 1) + begin) * line + lines + begin).flatten()
    bias = F.pad(convolution.bias, (0, packed.shape[3] - len(convolution.bias)))
    count = (x.base.shape[1] - x.past) // convolution.pool
    scale = convolution.scale
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
    frames: Frames, cells: ChosenCells, side: int, scale: int, down: int, right: int
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
        depth: channels read at once, of which there are a multiple.
        stages: see Triton's ``num_stages``.
    """

    rows: int
    columns: int
    more: int
    depth: int
    stages: int


def tile_of(convolution: CausalConvolution) -> Tile:
    """Fast on an H100 in the layers of the published model that take most of its time."""
    width, channels = convolution.weight.shape[0], convolution.packed.shape[2]
    columns = max(16, triton.next_power_of_2(width))
    if convolution.weight.dtype.itemsize > 2:  # nothing that tensor cores take
        return Tile(64, min(64, columns), 0, 16, 2)
    narrow = 32 if channels % 32 == 0 else 16
    if width == 96:
        # with three times the taps one wide product pays, though a quarter of it is nothing
        split = (64, 32) if convolution.weight.shape[2] == 1 else (128, 0)
        return Tile(128, *split, narrow, 4)
    if width == 192:
        return Tile(128, 128, 64, narrow, 4)
    if channels % 64 == 0:
        return Tile(128, min(128, columns), 0, 64, 3)
    return Tile(128, min(128, columns), 0, narrow, 4)


def _launch(
    convolution: CausalConvolution,
    x: Frames,
    out: Frames,
    added: Frames | None,
    cells: ChosenCells | None,
    side: int,
    tile: Tile | None = None,
) -> None:
    taps, packed = convolution.taps, convolution.packed
    given, to = x.everything, out.latest
    other = to if added is None else added.latest
    frames = (given.shape[1] - x.past) // convolution.pool
    tile = tile or tile_of(convolution)
    # rows of the product: pixels of one part of what comes out
    batch, _, height, width, _ = convolution.shape(x)
    height, width = height // convolution.scale, width // convolution.scale
    columns = triton.cdiv(convolution.weight.shape[0], tile.columns + tile.more)
    places = height * width // side**2
    tiles = triton.cdiv(batch * height * width, tile.rows)
    _convolve[(columns * frames * taps.parts * tiles,)](
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
        *given.stride()[:4],
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
        FRAMES=frames,
        SPLITS=columns,
        SIDE=side,
        LISTED=cells is not None,
        ADD=added is not None,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        MORE=tile.more,
        DEPTH=tile.depth,
        num_warps=4,
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

    @triton.jit
    def _convolve(
        x, weight, bias, added, out, numbers, count, total, places, across,
        xb, xt, xy, xx, ab, at, ay, ax, ob, ot, oy, ox,
        C: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr, TIMES: tl.constexpr,
        TAPS: tl.constexpr, BEGIN: tl.constexpr, STRIDE: tl.constexpr, POOL: tl.constexpr,
        WIDTH: tl.constexpr, GROW: tl.constexpr, ENLARGE: tl.constexpr, FRAMES: tl.constexpr,
        SPLITS: tl.constexpr, SIDE: tl.constexpr, LISTED: tl.constexpr, ADD: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        tl.static_assert(C % DEPTH == 0)
        CHUNKS: tl.constexpr = C // DEPTH
        AREA: tl.constexpr = TAPS * TAPS * C  # rows of weights of a frame
        EVEN: tl.constexpr = PADDED % (COLUMNS + MORE) == 0
        PARTS: tl.constexpr = 4 if ENLARGE else 1
        which = tl.program_id(0)
        split = which % SPLITS
        frame = which // SPLITS % FRAMES
        part = which // (SPLITS * FRAMES) % PARTS
        first = which // (SPLITS * FRAMES * PARTS) * ROWS
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
        begin = video * xb + (y * STRIDE + BEGIN + down) * xy + (z * STRIDE + BEGIN + right) * xx
        c = tl.arange(0, DEPTH)
        rows = x + (frame * POOL * xt + begin)[:, None] + c[None, :]
        n = split * (COLUMNS + MORE) + tl.arange(0, COLUMNS)
        m = split * (COLUMNS + MORE) + COLUMNS + tl.arange(0, MORE if MORE else 1)
        w = weight + part * (TIMES * AREA * PADDED)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        if MORE:
            more = tl.zeros((ROWS, MORE), tl.float32)
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
        if MORE:
            _finish(
                more, bias, added, out, m, frame, other, to, valid, at, ot, N, WIDTH, GROW, ADD
            )  # fmt: skip
