"""Pictures from one layout into another at listed cells, as one kernel and its reference.

An autoencoder's first and last steps only move pixels: patches of them become channels and back,
planes become channels last. Beside that, numbers are scaled, limited, added or cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.maps import CellList, Map

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Change", "Pictures", "redraw", "redraw_reference"]

_ELEMENTS = 1024  # of a program
_RESIDENT = 16  # programs for a multiprocessor


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in some layout.

    Attributes:
        tensor: (T, B, C*patch**2, H/patch, W/patch), a view in any order.
        patch: pixels along the side of a square of them that is in channels, as
            ``pixel_unshuffle`` orders them.
    """

    tensor: Tensor
    patch: int = 1

    @classmethod
    def of(cls, map_: Map, channels: int, patch: int) -> Pictures:
        """What is in the first channels of a map."""
        return cls(map_.pixels[..., :channels].permute(0, 1, 4, 2, 3), patch)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """T, B, C, H, W."""
        frames, batch, channels, height, width = self.tensor.shape
        patch = self.patch
        return frames, batch, channels // patch**2, height * patch, width * patch

    @property
    def strides(self) -> tuple[int, ...]:
        """Of T, B, and within a frame."""
        return self.tensor.stride()

    def whole(self) -> Tensor:
        """(T, B, C, H, W)."""
        return F.pixel_shuffle(self.tensor, self.patch)


@dataclass(frozen=True, eq=False)
class Change:
    """What is done to numbers on the way, in this order.

    Attributes:
        scale, shift: (C,) float32 each, what channels are multiplied with and what is added then.
        limit: to (-3, 3), softly.
        cut: to [0, 1], after adding.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    limit: bool = False
    cut: bool = False


def redraw_reference(
    source: Pictures, to: Pictures, change: Change, added: Pictures | None, cells: CellList
) -> None:
    """The slow reference of `redraw`."""
    x = source.whole().float()
    if change.scale is not None and change.shift is not None:
        x = x * change.scale.view(-1, 1, 1) + change.shift.view(-1, 1, 1)
    x = torch.tanh(x / 3) * 3 if change.limit else x
    x = x if added is None else x + added.whole().float()
    x = F.pixel_unshuffle(x.clamp(0, 1) if change.cut else x, to.patch)
    mask = cells.mask(to.tensor.shape[3] // cells.height)
    where = torch.tensor(True, device=x.device) if mask is None else mask.unsqueeze(1)
    to.tensor.copy_(torch.where(where, x.to(to.tensor.dtype), to.tensor))


def redraw(
    source: Pictures,
    to: Pictures,
    cells: CellList,
    change: Change | None = None,
    added: Pictures | None = None,
) -> None:
    """Write pictures into others of the same shape, at listed cells.

    Args:
        source: read.
        to: written to.
        cells: where; a cell's pixels are whole patches of ``to``.
        change: what is done to numbers on the way.
        added: of the same shape.
    """
    change = change or Change()
    device = to.tensor.device
    shape, read = to.shape, (source, to, *([] if added is None else [added]))
    if any(pictures.shape != shape for pictures in read):
        raise ValueError(f"pictures of shape {source.shape} cannot be redrawn as {shape}")
    frames, batch, channels, height, width = shape
    # the kernel counts in 32 bits, a frame and the elements that there are
    countable = frames * batch * channels * height * width < 2**31 and all(
        sum((n - 1) * step for n, step in zip(p.tensor.shape[2:], p.strides[2:], strict=True))
        < 2**31
        for p in read
    )
    if triton is None or not (to.tensor.is_cuda or _INTERPRETED) or not countable:
        redraw_reference(source, to, change, added, cells)
        return
    listed, other = cells.numbers is not None, added or source
    programs = triton.cdiv(frames * batch * channels * height * width, _ELEMENTS)
    count = (
        torch.cuda.get_device_properties(device).multi_processor_count if to.tensor.is_cuda else 1
    )
    _redraw[(min(programs, count * _RESIDENT),)](
        source.tensor, to.tensor, other.tensor,
        source.tensor if change.scale is None else change.scale,
        source.tensor if change.shift is None else change.shift,
        source.tensor if cells.numbers is None else cells.numbers,
        source.tensor if cells.length is None else cells.length,
        *source.strides, *to.strides, *other.strides,
        batch, cells.height, cells.width,
        FRAMES=frames, CHANNELS=channels, SIDE=height // cells.height,
        FROM=source.patch, TO=to.patch, OTHER=other.patch, LISTED=listed,
        SCALE=change.scale is not None, LIMIT=change.limit, ADD=added is not None, CUT=change.cut,
        ELEMENTS=_ELEMENTS, num_warps=4,
    )  # fmt: skip


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _at(
        pictures, t, b, c, y, x, frame_step, video_step, channel_step, row_step, column_step,
        PATCH: tl.constexpr,
    ):  # fmt: skip
        """Where pixels of pictures are."""
        channel = (c * PATCH + y % PATCH) * PATCH + x % PATCH
        within = channel * channel_step + y // PATCH * row_step + x // PATCH * column_step
        return pictures + t.to(tl.int64) * frame_step + b.to(tl.int64) * video_step + within

    @triton.jit(
        do_not_specialize=["batch", "cell_rows", "cell_columns"],
        do_not_specialize_on_alignment=["numbers", "count"],
    )
    def _redraw(
        source, to, added, scale, shift, numbers, count,
        from_t, from_b, from_c, from_y, from_x, to_t, to_b, to_c, to_y, to_x,
        add_t, add_b, add_c, add_y, add_x, batch, cell_rows, cell_columns,
        FRAMES: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, FROM: tl.constexpr,
        TO: tl.constexpr, OTHER: tl.constexpr, LISTED: tl.constexpr, SCALE: tl.constexpr,
        LIMIT: tl.constexpr, ADD: tl.constexpr, CUT: tl.constexpr, ELEMENTS: tl.constexpr,
    ):  # fmt: skip
        PER_CELL: tl.constexpr = FRAMES * CHANNELS * SIDE * SIDE
        picture = cell_rows * cell_columns
        cells = batch * picture
        if LISTED:
            cells = tl.load(count)
        height, width = cell_rows * SIDE, cell_columns * SIDE
        first = tl.program_id(0) * ELEMENTS
        while first < cells * PER_CELL:
            number = first + tl.arange(0, ELEMENTS)
            there = number < cells * PER_CELL
            if LISTED:
                # cell by cell
                cell = tl.load(numbers + number // PER_CELL, there, 0)
                x = cell % cell_columns * SIDE + number % SIDE
                y = cell % picture // cell_columns * SIDE + number // SIDE % SIDE
                c = number // (SIDE * SIDE) % CHANNELS
                t = number // (SIDE * SIDE * CHANNELS) % FRAMES
                b = cell // picture
            else:
                # line by line
                x = number % width
                y = number // width % height
                c = number // (width * height) % CHANNELS
                t = number // (width * height * CHANNELS) % FRAMES
                b = number // (width * height * CHANNELS * FRAMES)
            at = _at(source, t, b, c, y, x, from_t, from_b, from_c, from_y, from_x, FROM)
            value = tl.load(at, there, 0.0).to(tl.float32)
            if SCALE:
                value = value * tl.load(scale + c) + tl.load(shift + c)
            if LIMIT:
                value = 6 * tl.sigmoid(value * (2 / 3)) - 3
            if ADD:
                at = _at(added, t, b, c, y, x, add_t, add_b, add_c, add_y, add_x, OTHER)
                value += tl.load(at, there, 0.0).to(tl.float32)
            if CUT:
                # what is no number stays none
                value = tl.where(value < 0, 0.0, value)
                value = tl.where(value > 1, 1.0, value)
            at = _at(to, t, b, c, y, x, to_t, to_b, to_c, to_y, to_x, TO)
            tl.store(at, value.to(to.dtype.element_ty), there)
            first += tl.num_programs(0) * ELEMENTS
