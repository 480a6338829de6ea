"""RMS norm over channels and SiLU, written where a causal convolution reads it, as one kernel.

The buffer's frames before are moved up on the way: the last ones it held become its past. It knows
frames with channels last, not the autoencoder: ``autoencoders/wan_fused.py`` does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.frames import ChosenCells, Frames

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Norm", "place", "place_reference"]

_EPS = 1e-12  # of the norm of a pixel's channels, as torch's normalize has it


class Norm:
    """What is done to a pixel's channels.

    Args:
        gamma: (C,) factors after dividing by the root mean square; None for neither.
        silu: whether SiLU follows.
    """

    def __init__(self, gamma: Tensor | None = None, silu: bool = False) -> None:
        self.gamma, self.silu = gamma, silu

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C), in float32 at least."""
        y = x if x.dtype == torch.float64 else x.float()
        if self.gamma is not None:
            y = F.normalize(y, dim=-1, eps=_EPS) * (y.shape[-1] ** 0.5 * self.gamma.to(y.dtype))
        return F.silu(y) if self.silu else y


def place_reference(
    norm: Norm,
    x: Tensor | None,
    out: Frames,
    cells: ChosenCells | None = None,
    recent: ChosenCells | None = None,
    side: int = 1,
) -> None:
    """The slow reference of `place`: everything, of which the cells' pixels are taken."""
    everything = out.everything
    if out.past:
        before = everything[:, -out.past :].clone()
        if recent is not None:
            before = torch.where(recent.mask(side), before, everything[:, : out.past])
        everything[:, : out.past] = before
    if x is not None:
        to = out.latest[..., : x.shape[4]]
        mask = None if cells is None else cells.mask(side)[:, 0]
        for i in range(to.shape[1]):  # one by one, since norms may be of twice the bytes
            y = norm(x[:, i]).to(to.dtype)
            to[:, i].copy_(y if mask is None else torch.where(mask, y, to[:, i]))


def place(
    norm: Norm,
    x: Tensor | None,
    out: Frames,
    cells: ChosenCells | None = None,
    recent: ChosenCells | None = None,
    side: int = 1,
) -> None:
    """Write frames where a convolution reads them, after making what was there the past.

    Args:
        norm: what is done to them.
        x: (B, T, H, W, C) of any strides; None to move the past only.
        out: (B, T, H, W, C or more).
        cells: where ``x`` is written; None for everywhere.
        recent: where the past moves, the ``cells`` among it; None for everywhere.
        side: pixels along the side of a cell.
    """
    tensor = out.base
    countable = max(tensor.numel(), 0 if x is None else x.numel()) < 2**31
    if triton is not None and (tensor.is_cuda or _INTERPRETED) and countable:
        _launch(norm, x, out, cells, recent, side)
    elif cells is None or recent is None or not tensor.is_cpu:
        place_reference(norm, x, out, cells, recent, side)
    else:
        _place_rows(norm, x, out, cells, recent, side)


def _place_rows(
    norm: Norm, x: Tensor | None, out: Frames, cells: ChosenCells, recent: ChosenCells, side: int
) -> None:
    frames = out.base.shape[1] - out.past
    if out.past and len(recent):
        to = out.places(recent, side)
        for i in range(out.past):
            before = out.rows.index_select(0, to + (i + frames) * out.area)
            out.rows.index_copy_(0, to + i * out.area, before)
    if x is not None and len(cells):
        video, row, column = cells.pixels(side)
        to = out.places(cells, side) + out.past * out.area
        for i in range(frames):
            y = norm(x[video, i, row, column]).to(out.base.dtype)
            if y.shape[1] < out.base.shape[4]:
                y = F.pad(y, (0, out.base.shape[4] - y.shape[1]))
            out.rows.index_copy_(0, to + i * out.area, y)


def _launch(
    norm: Norm,
    x: Tensor | None,
    out: Frames,
    cells: ChosenCells | None,
    recent: ChosenCells | None,
    side: int,
) -> None:
    to = out.everything
    some = to  # stands in for pointers that the kernel does not read
    given = to[:, out.past :] if x is None else x
    batch, frames, height, width, channels = given.shape
    block = triton.next_power_of_2(channels if x is not None else to.shape[4])
    pixels = max(1, min(_MOST // block, 64))
    listed = recent if recent is not None else cells
    places = 1 if listed is None else listed.chosen[0].numel()
    _place[(triton.cdiv(batch * height * width, pixels),)](
        given,
        some if norm.gamma is None else norm.gamma,
        to,
        some if listed is None else listed.numbers,
        some if listed is None else listed.count,
        some if cells is None else cells.chosen.view(torch.uint8),
        batch * height * width,
        height,
        width,
        places,
        width // side,
        *given.stride(),
        *to.stride()[:4],
        channels**0.5,
        C=channels,
        FRAMES=frames,
        PAST=out.past,
        SIDE=side,
        LISTED=listed is not None,
        CHOSEN=cells is not None,
        WRITE=x is not None,
        NORM=norm.gamma is not None,
        SILU=norm.silu,
        EPS=_EPS,
        PIXELS=pixels,
        BLOCK=block,
        num_warps=4,
    )


_MOST = 4096  # numbers that a program holds
_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _place(
        x, gamma, out, numbers, count, chosen, total, height, width, places, across,
        xb, xt, xy, xx, xc, ob, ot, oy, ox, root,
        C: tl.constexpr, FRAMES: tl.constexpr, PAST: tl.constexpr, SIDE: tl.constexpr,
        LISTED: tl.constexpr, CHOSEN: tl.constexpr, WRITE: tl.constexpr, NORM: tl.constexpr,
        SILU: tl.constexpr, EPS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        first = tl.program_id(0) * PIXELS
        if LISTED:
            total = tl.load(count) * (SIDE * SIDE)
        if first >= total:
            return
        pixel = first + tl.arange(0, PIXELS)
        inside = pixel < total
        if LISTED:
            cell = tl.load(numbers + pixel // (SIDE * SIDE), inside, 0)
            place = cell % places
            within = pixel % (SIDE * SIDE)
            video = cell // places
            y = place // across * SIDE + within // SIDE
            z = place % across * SIDE + within % SIDE
        else:
            video = pixel // (height * width)
            y = pixel // width % height
            z = pixel % width
        c = tl.arange(0, BLOCK)
        to = out + (video * ob + y * oy + z * ox)[:, None] + c[None, :]
        here = inside[:, None] & (c < C)[None, :]
        for i in tl.static_range(PAST):
            before = tl.load(to + (i + FRAMES) * ot, here)
            tl.store(to + i * ot, before, here)
        if WRITE:
            if CHOSEN:
                write = tl.load(
                    chosen + (video * places + y // SIDE * across + z // SIDE), inside, 0
                )
                here &= (write != 0)[:, None]
            at = x + (video * xb + y * xy + z * xx)[:, None] + (c * xc)[None, :]
            if NORM:
                factor = tl.load(gamma + c, c < C, 0.0).to(tl.float32) * root
            for i in tl.static_range(FRAMES):
                v = tl.load(at + i * xt, here, 0.0).to(tl.float32)
                if NORM:
                    norm = tl.sqrt(tl.sum(v * v, 1))
                    v = v / tl.maximum(norm, EPS)[:, None] * factor[None, :]
                if SILU:
                    v = v * tl.sigmoid(v)
                tl.store(to + (i + PAST) * ot, v.to(out.dtype.element_ty), here)
