"""A convolution of the tiny autoencoder with what surrounds it, as one kernel and its reference.

Around each of its convolutions the autoencoder joins frames with their predecessors, pools or grows
time, enlarges the picture, adds and cuts off; apart, these move more memory than the convolutions
themselves. Here they are part of how a convolution reads and writes maps (`maps`), at listed cells
or everywhere. It does not know the autoencoder: ``autoencoders/tiny_fused.py`` does.

What limits it on an H100 is what is read from the L2 cache: a tile of r rows and c columns takes
(r + c) / (r * c) bytes an operation. Hence the largest tiles that leave no multiprocessor idle, and
an order of sums in which the taps of one piece of channels follow each other: what one tap reads,
the next one finds in the L1 cache, but for an edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.maps import CellList, Map

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Convolution", "Tile", "available", "convolve", "convolve_reference"]

_LEAST = 16  # the least side of a matrix that tensor cores take


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution by 3x3 taps over the frames of a map; the picture's edge is zero.

    Attributes:
        weight: (G, 3, 3, N, sources*C) where ``grow`` is G, else G is 1.
        bias: (N,) or None.
        sources: frames that one is made of.
        past: the second source is the frame before; else sources are successive frames that are
            pooled to one.
        stride: 1 or 2, of rows and columns.
        enlarge: every pixel of the input is a square of four first.
        squares: a row of the product makes a square of four pixels, which pays for few channels;
            sides are even.
        relu: cut off below 0, after adding what is added.
    """

    weight: Tensor
    bias: Tensor | None = None
    sources: int = 1
    past: bool = False
    stride: int = 1
    enlarge: bool = False
    squares: bool = False
    relu: bool = False
    packed: Tensor = field(init=False, repr=False)
    packed_bias: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        packed = _packed(self)
        object.__setattr__(self, "packed", packed)
        bias = self.bias
        if bias is not None:
            bias = bias.repeat(self.columns // self.width)
            bias = F.pad(bias, (0, packed.shape[2] - len(bias)))
        object.__setattr__(self, "packed_bias", bias)

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

    @property
    def columns(self) -> int:
        """Numbers that one row of the product makes."""
        return self.width * (4 if self.squares else self.grow)

    @property
    def depth(self) -> int:
        """Channels that are multiplied at a time."""
        return next(size for size in (64, 32, 16) if self.channels % size == 0)

    @property
    def scale(self) -> int:
        """Pixels made along a side for one of a row of the product."""
        return 2 if self.enlarge or self.squares else 1

    def shape(self, x: Map) -> tuple[int, int, int, int, int]:
        """(T, B, H, W, N) of what comes out for a map."""
        frames, batch, height, width, _ = x.pixels.shape
        if not self.past:
            frames //= self.sources
        scale = 2 if self.enlarge else 1
        height, width = (-(-side * scale // self.stride) for side in (height, width))
        return frames * self.grow, batch, height, width, self.width


def _packed(convolution: Convolution) -> Tensor:
    """Weights as the kernel reads them: (parts, sources * C * taps, columns and some more).

    Where the picture is enlarged, the nine taps of an output pixel fall on four pixels of the
    input, which four depends on whether its row and column are even: four parts, their taps summed.
    A square of four pixels sees 4x4 pixels, of which each takes nine.
    """
    weight = convolution.weight.float()
    one = weight.new_ones(1, 3).diag_embed()
    if convolution.enlarge:
        # an even row looks at the one above once and at its own twice, an odd one the other way
        fold = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        packed = torch.einsum("pak,qbl,gklnc->pqabcgn", fold, fold, weight).flatten(0, 1)
    elif convolution.squares:
        shift = torch.stack([F.pad(one[0], (0, 0, 0, 1)), F.pad(one[0], (0, 0, 1, 0))])
        packed = torch.einsum("pak,qbl,gklnc->gabcpqn", shift, shift, weight)
    else:
        packed = torch.einsum("pak,qbl,gklnc->pqabcgn", one, one, weight).flatten(0, 1)
    packed = packed.flatten(4).flatten(1, 2)
    # taps innermost, see above
    packed = packed.unflatten(2, (-1, convolution.depth)).transpose(1, 2).flatten(1, 3)
    columns = packed.shape[2]
    most = 1 << max(columns - 1, _LEAST - 1).bit_length()
    packed = F.pad(packed, (0, -columns % min(most, 64 if columns > 128 else 128)))
    return packed.to(convolution.weight.dtype).contiguous()


def available() -> bool:
    """Whether there are kernels at all."""
    return triton is not None


def convolve_reference(
    convolution: Convolution, x: Map, out: Map, added: Map | None, cells: CellList
) -> None:
    """The slow reference of `convolve`: joins, enlarges, convolves, adds, cuts off, everywhere."""
    frames = x.pixels
    if convolution.past:
        frames = torch.cat([frames, torch.cat([x.before.unsqueeze(0), frames[:-1]])], 4)
    elif convolution.sources > 1:
        frames = torch.cat(frames.unflatten(0, (-1, convolution.sources)).unbind(1), 4)
    batch = frames.shape[1]
    flat = frames.flatten(0, 1).permute(0, 3, 1, 2)
    if convolution.enlarge:
        flat = flat.repeat_interleave(2, 2).repeat_interleave(2, 3)
    grown = [
        F.conv2d(flat, weight.permute(2, 3, 0, 1), convolution.bias, convolution.stride, 1)
        for weight in convolution.weight
    ]
    y = torch.stack([frames.unflatten(0, (-1, batch)) for frames in grown], 1).flatten(0, 1)
    y = y.permute(0, 1, 3, 4, 2)
    to = out.pixels[..., : convolution.width]
    mask = cells.mask(to.shape[2] // cells.height)
    where = torch.tensor(True, device=y.device) if mask is None else mask.unsqueeze(-1)
    if added is not None:
        y = y + added.pixels[..., : convolution.width]
        if added.past:
            added.before.copy_(torch.where(where, added.pixels[-1], added.before))
    to.copy_(torch.where(where, y.relu() if convolution.relu else y, to))


class Tile(NamedTuple):
    """What a program makes at a time, and how.

    Attributes:
        rows, columns: of the product, powers of 2.
        warps, stages: of the program.
        cached: what is read of the map goes through the L1 cache, in smaller pieces.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    cached: bool = False


def convolve(
    convolution: Convolution,
    x: Map,
    out: Map,
    added: Map | None = None,
    cells: CellList | None = None,
    tile: Tile | None = None,
) -> None:
    """Convolve a map into another one, at listed cells; both stay as they are elsewhere.

    Args:
        convolution: how.
        x: with a past, if the convolution sees it.
        out: of the shape `Convolution.shape` gives, or with more channels.
        added: added to the result, of its shape. If it has a past, its last frame becomes that.
        cells: by their numbers; None: everything is one cell.
        tile: what a program makes, None for what is known to be fast.
    """
    frames, batch, height, width, _ = convolution.shape(x)
    cells = cells or CellList(batch, height, width)
    countable = max(y.data[0, 0].numel() for y in (x, out)) < 2**31  # in 32 bits, a frame
    if triton is None or not (x.data.is_cuda or _INTERPRETED) or not countable:
        convolve_reference(convolution, x, out, added, cells)
        return
    packed, scale = convolution.packed, convolution.scale
    side, frames = height // cells.height // scale, frames // convolution.grow
    rows = frames * cells.most * side**2
    listed = cells.numbers is not None
    tile = tile or _tile(convolution, rows, listed)
    parts, blocks = len(packed), packed.shape[2] // tile.columns
    tiles = triton.cdiv(rows, tile.rows) * parts * blocks
    taps = 2 if convolution.enlarge else 4 if convolution.squares else 3
    _convolve[(min(tiles, _programs(x.data.device, tile)),)](
        x.data[x.past :],
        packed,
        packed if convolution.packed_bias is None else convolution.packed_bias,
        out.data if added is None else added.data[added.past :],
        out.data[out.past :],
        packed if cells.numbers is None else cells.numbers,
        packed if cells.length is None else cells.length,
        batch,
        cells.height,
        cells.width,
        0,
        *x.data.shape[2:4],
        *out.data.shape[2:4],
        C=convolution.channels,
        N=convolution.width,
        OUT=out.data.shape[4],
        COUNT=convolution.columns,
        PADDED=packed.shape[2],
        SOURCES=convolution.sources,
        PAST=convolution.past,
        TAPS=taps,
        STEP=2 if convolution.squares else convolution.stride,
        SCALE=scale,
        SQUARES=convolution.squares,
        GROW=convolution.grow,
        PARTS=parts,
        FRAMES=frames,
        SIDE=side,
        LISTED=listed,
        BIAS=convolution.bias is not None,
        ADD=added is not None,
        KEEP=added is not None and added.past > 0,
        RELU=convolution.relu,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=convolution.depth,
        CACHED=tile.cached,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _tile(convolution: Convolution, rows: int, listed: bool) -> Tile:
    """Large tiles where they leave no multiprocessor idle, if of a list an eighth of the cells is
    active; the fastest on an H100 of fourteen at every layer of the published widths."""
    padded = convolution.packed.shape[2]
    columns = next(size for size in (128, 64, 32, 16) if padded % size == 0)
    if columns < 64:
        return Tile(64, columns, 4, 4)
    expected = rows // 8 if listed else rows
    tiles = -(-expected // 128) * (padded // columns) * len(convolution.packed)
    # of few channels a tile is read faster than it is stored
    large = tiles >= _BUSY and convolution.channels > _LEAST
    return Tile(128, columns, 4, 3) if large else Tile(64, 64, 4, 4)


_BUSY = 90  # tiles that keep a GPU of 132 multiprocessors busy
_RESIDENT = 4  # programs that a multiprocessor runs at the same time, at most


def _programs(device: torch.device, tile: Tile) -> int:
    """Programs that make all tiles, one after the other."""
    if device.type != "cuda":
        return 2  # interpreted, one by one
    return _multiprocessors(device) * _RESIDENT


def _multiprocessors(device: torch.device) -> int:
    known: Any = torch.cuda.get_device_properties(device)
    return known.multi_processor_count


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit(
        do_not_specialize=[
            *("batch", "cell_rows", "cell_columns", "nothing"),
            *("in_height", "in_width", "out_height", "out_width"),
        ],
        # lists of a block lie one behind the other: of the first one only it is known where
        do_not_specialize_on_alignment=["numbers", "count"],
    )
    def _convolve(
        x, weight, bias, added, out, numbers, count, batch, cell_rows, cell_columns,
        nothing, in_height, in_width, out_height, out_width,
        C: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr, COUNT: tl.constexpr,
        PADDED: tl.constexpr, SOURCES: tl.constexpr, PAST: tl.constexpr, TAPS: tl.constexpr,
        STEP: tl.constexpr, SCALE: tl.constexpr, SQUARES: tl.constexpr, GROW: tl.constexpr,
        PARTS: tl.constexpr, FRAMES: tl.constexpr, SIDE: tl.constexpr, LISTED: tl.constexpr,
        BIAS: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, RELU: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
        CACHED: tl.constexpr,
    ):  # fmt: skip
        SQUARE: tl.constexpr = TAPS * TAPS
        CHUNKS: tl.constexpr = C // DEPTH
        BLOCKS: tl.constexpr = PADDED // COLUMNS
        PER_CELL: tl.constexpr = FRAMES * SIDE * SIDE
        picture = cell_rows * cell_columns
        cells = batch * picture
        if LISTED:
            cells = tl.load(count)
        in_row, out_row = in_width * C, out_width * OUT
        # frames of all videos; a few of them may be more than 32 bits count
        in_video = (in_height * in_row).to(tl.int64)
        out_video = (out_height * out_row).to(tl.int64)
        in_step, out_step = batch * in_video, batch * out_video
        source_step = -in_step if PAST else in_step
        c = tl.arange(0, DEPTH)
        tiles = tl.cdiv(cells * PER_CELL, ROWS) * PARTS * BLOCKS
        tile = tl.program_id(0)
        while tile < tiles:
            part = tile % (PARTS * BLOCKS) // BLOCKS
            n = tile % BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
            number = tile // (PARTS * BLOCKS) * ROWS + tl.arange(0, ROWS)
            there = number < cells * PER_CELL
            # rows beyond the list repeat its first, so that nothing need be masked
            number = tl.where(there, number, 0)
            cell = number // PER_CELL
            if LISTED:
                cell = tl.load(numbers + cell)
            frame = number % PER_CELL // (SIDE * SIDE)
            y = cell % picture // cell_columns * SIDE + number % (SIDE * SIDE) // SIDE
            z = cell % cell_columns * SIDE + number % SIDE
            video = cell // picture
            down, right = part // 2, part % 2
            first = frame if PAST else frame * SOURCES
            rows = x + first * in_step + video * in_video
            rows += (y * STEP + down) * in_row + (z * STEP + right) * C
            columns = weight + part * (SQUARE * SOURCES * C * PADDED) + n
            sums = tl.zeros((ROWS, COLUMNS), tl.float32)
            for i in range(SQUARE * SOURCES * CHUNKS):
                tap = i % SQUARE
                at = tap // TAPS * in_row + tap % TAPS * C + i // SQUARE % CHUNKS * DEPTH
                if SOURCES > 1:
                    at += i // (SQUARE * CHUNKS) * source_step
                if CACHED:
                    # 8 bytes at a time, as far as the compiler knows: more would pass by the cache
                    at += nothing * 4
                a = tl.load(rows[:, None] + (at + c)[None, :])
                b = tl.load(columns[None, :] + (i * DEPTH + c)[:, None] * PADDED)
                sums = tl.dot(a, b, sums, input_precision="ieee")
            if BIAS:
                sums += tl.load(bias + n).to(tl.float32)[None, :]
            # where a row's first pixel is, and the columns from there
            to = (frame * GROW) * out_step + video * out_video
            to += (y * SCALE + down + 1) * out_row + (z * SCALE + right + 1) * OUT
            column = n
            if SQUARES:
                column = n % N + n // N // 2 * out_row + n // N % 2 * OUT
            if GROW > 1:
                column = n % N + n // N * out_step
            valid = there[:, None] & (n < COUNT)[None, :]
            if ADD:
                old_at = (added + to)[:, None] + column[None, :]
                old = tl.load(old_at, valid, 0.0)
                sums += old.to(tl.float32)
                if KEEP:
                    last = valid & (frame == FRAMES - 1)[:, None]
                    tl.store(old_at - FRAMES * out_step, old, last)
            if RELU:
                sums = tl.maximum(sums, 0.0)
            made = sums.to(out.dtype.element_ty)
            tl.store((out + to)[:, None] + column[None, :], made, valid)
            tile += tl.num_programs(0)
