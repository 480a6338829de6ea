"""Snapshots of the latest latent frames on a GPU, and what is taken from them.

A ring holds a picture, or a result and its source, of every latent frame that anything may come
from. What moved takes along pixels, by bicubic interpolation in what was shown, and edits, by
linear interpolation in latents. ``engine.moved`` and ``engine.results`` do the same in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Ring", "carry", "show"]

_SIDE = 16  # pixels of a patch
_WARPS = 4
# Half precision holds whole grey levels as they are, and so what half precision decoded; of other
# pictures it loses a sixteenth of a level at most.
_STORED = torch.float16


class Ring:
    """Pictures of the latest latent frames.

    Args:
        like: (3, H, W), for its size and device.
        count: so many are kept.

    Attributes:
        pictures: (count, 3, H, W) float16.
    """

    def __init__(self, like: Tensor, count: int) -> None:
        shape = count, *like.shape
        self.pictures = torch.zeros(shape, dtype=_STORED, device=like.device)

    def put(self, number: Tensor, picture: Tensor) -> None:
        """Keep a picture (3, H, W) as that of a latent frame, () int64; the oldest makes room."""
        slot = (number % len(self.pictures)).view(1)
        self.pictures.index_copy_(0, slot, picture.unsqueeze(0).to(_STORED))


def show(
    shown: Tensor, new: Tensor, ring: Ring, numbers: Tensor, places: Tensor, mask: Tensor,
    even: Tensor,
) -> Tensor:  # fmt: skip
    """What is shown where a latent frame is not computed.

    Args:
        shown: (3, H, W) the picture before.
        new: (n, 3, H, W) what was decoded; n is t or, where a video ends, less.
        ring: snapshots of what was shown.
        numbers, places: (N, t, 16, 16) and (N, t, 16, 16, 2), see `Found`.
        mask: (N,) bool, what moved.
        even: (N,) float32 share of what was decoded, where it moved.

    Returns:
        (n, 3, H, W).
    """
    count, _, rows, columns = new.shape
    out, new = torch.empty_like(new, memory_format=torch.contiguous_format), new.contiguous()
    _show[(rows // _SIDE * (columns // _SIDE), count)](
        shown.contiguous(), new, ring.pictures, numbers, places, mask.view(torch.uint8), even, out,
        columns // _SIDE, rows // _SIDE, T=numbers.shape[1], COUNT=len(ring.pictures),
        num_warps=_WARPS,
    )  # fmt: skip
    return out


def carry(
    given: tuple[Tensor, Tensor, Tensor, Tensor], mask: Tensor, places: tuple[Tensor, Tensor],
    pairs: Tensor, number: int, gains: Tensor, limits: tuple[float, float, float],
    to: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    """Results of a latent frame, and how even offsets are, see ``engine.results``.

    Args:
        given: (N, P) what was computed, what the latent frame before has, and the source; (N,) bool
            which were computed.
        mask: (N,) bool, what moved.
        places: numbers and places (N, t, 16, 16) and (N, t, 16, 16, 2), see ``moving.Found``.
        pairs: (K, h*p, w*p, 2, C) ring of results and their sources, P is p*p*C; those of this
            latent frame are put in. It may have gaps between latent frames. Nothing may come from
            one that is K frames old.
        number: of the latent frame.
        gains: (C, C) of channels in grey levels.
        limits: squared grey levels of a source's steps that are faint; grey levels of an offset's
            steps up to which it is even, and from which it is not at all.
        to: (N, P) and (N,) float32 that results, and how even they are, are written to; both
            contiguous, and 1 where nothing moved.
    """
    count, rows, columns, _, channels = pairs.shape
    filled, steps = to
    faint, even, uneven = limits
    side = round((filled.shape[1] // channels) ** 0.5)
    own, last, source, keep = (x.contiguous() for x in given)
    _carry[(len(filled),)](
        own, last, source, keep.view(torch.uint8), mask.view(torch.uint8), pairs, *places,
        gains.contiguous(), filled, steps, pairs.stride(0), number % count, columns, rows,
        T=places[0].shape[1], COUNT=count, CHANNELS=channels, FAINT=faint, EVEN=even, UNEVEN=uneven,
        WIDTH=triton.next_power_of_2(channels), COLUMNS=side, SQUARE=_SIDE // side, num_warps=1,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def whole(x):
        """Nearest whole number, of two the even one: floats that large have no fraction."""
        return (x + 12582912.0) - 12582912.0

    @triton.jit
    def slot(number, COUNT: tl.constexpr):
        """Of a latent frame in a ring; numbers may be below 0."""
        return (number % COUNT + COUNT) % COUNT

    @triton.jit
    def inside(x, size):
        return tl.minimum(tl.maximum(x, 0), size - 1)

    @triton.jit
    def patch_pixels():
        """Where the pixels of a patch are, x and y, (16, 16): cells, pixels of a cell."""
        cell, pixel = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
        return cell % 4 * 4 + pixel % 4, cell // 4 * 4 + pixel // 4

    @triton.jit
    def _cubic(t):
        """Weights of the four pixels around a place ``t`` beyond the second; Keys, a = -0.75."""
        before, beside, after = t + 1, 1 - t, 2 - t
        first = ((-0.75 * before + 3.75) * before - 6) * before + 3
        second = (1.25 * t - 2.25) * t * t + 1
        third = (1.25 * beside - 2.25) * beside * beside + 1
        return first, second, third, ((-0.75 * after + 3.75) * after - 6) * after + 3

    @triton.jit
    def _row(at, a, b, c, d, wa, wb, wc, wd):
        """Four weighted pixels of a row of a picture."""
        found = tl.load(at + a).to(tl.float32) * wa + tl.load(at + b).to(tl.float32) * wb
        found += tl.load(at + c).to(tl.float32) * wc
        return found + tl.load(at + d).to(tl.float32) * wd

    @triton.jit
    def sampled(ring, number, x, y, line, rows, COUNT: tl.constexpr):
        """Red, green and blue of snapshots at places, bicubic; edges are repeated."""
        y = tl.minimum(tl.maximum(y, 0.0), 1.0 * (rows - 1))
        # far beyond an edge everything is that edge, and integers have an end
        x = tl.minimum(tl.maximum(x, -4.0), 1.0 * (line + 3))
        left, top = tl.floor(x), tl.floor(y)
        wa, wb, wc, wd = _cubic(x - left)
        va, vb, vc, vd = _cubic(y - top)
        i, j = left.to(tl.int32), top.to(tl.int32)
        a, b = inside(i - 1, line), inside(i, line)
        c, d = inside(i + 1, line), inside(i + 2, line)
        at = ring + slot(number, COUNT) * 3 * rows * line
        first, second = at + inside(j - 1, rows) * line, at + inside(j, rows) * line
        third, fourth = at + inside(j + 1, rows) * line, at + inside(j + 2, rows) * line
        red = _row(first, a, b, c, d, wa, wb, wc, wd) * va
        red += _row(second, a, b, c, d, wa, wb, wc, wd) * vb
        red += _row(third, a, b, c, d, wa, wb, wc, wd) * vc
        red += _row(fourth, a, b, c, d, wa, wb, wc, wd) * vd
        p = rows * line
        green = _row(first + p, a, b, c, d, wa, wb, wc, wd) * va
        green += _row(second + p, a, b, c, d, wa, wb, wc, wd) * vb
        green += _row(third + p, a, b, c, d, wa, wb, wc, wd) * vc
        green += _row(fourth + p, a, b, c, d, wa, wb, wc, wd) * vd
        q = 2 * p
        blue = _row(first + q, a, b, c, d, wa, wb, wc, wd) * va
        blue += _row(second + q, a, b, c, d, wa, wb, wc, wd) * vb
        blue += _row(third + q, a, b, c, d, wa, wb, wc, wd) * vc
        blue += _row(fourth + q, a, b, c, d, wa, wb, wc, wd) * vd
        return red, green, blue

    @triton.jit
    def _blend(taken, new, shown, moved, even):
        taken = tl.minimum(tl.maximum(taken, 0.0), 1.0)
        own = tl.load(new).to(tl.float32)
        mixed = taken + even * (own - taken)
        return tl.where(moved, mixed, tl.load(shown).to(tl.float32))

    @triton.jit(do_not_specialize_on_alignment=["mask", "even"])
    def _show(
        shown, new, ring, numbers, places, mask, even, out, width, height, T: tl.constexpr,
        COUNT: tl.constexpr,
    ):  # fmt: skip
        place, f = tl.program_id(0), tl.program_id(1)
        line, rows = width * 16, height * 16
        x, y, plane = place % width * 16, place // width * 16, line * rows
        column, line_of = patch_pixels()
        at = (y + line_of) * line + x + column
        moved = tl.load(mask + place) != 0
        red = tl.zeros((16, 16), tl.float32)
        green, blue = red, red
        share = tl.full((), 0.0, tl.float32)
        if moved:
            share = tl.load(even + place).to(tl.float32)
            patch = (place * T + f) * 256 + line_of * 16 + column
            was_x, was_y = tl.load(places + 2 * patch), tl.load(places + 2 * patch + 1)
            number = tl.load(numbers + patch)
            red, green, blue = sampled(ring, number, was_x, was_y, line, rows, COUNT)
        own, to = new + 3 * f * plane + at, out + 3 * f * plane + at
        shown += at
        tl.store(to, _blend(red, own, shown, moved, share))
        own, shown, to = own + plane, shown + plane, to + plane
        tl.store(to, _blend(green, own, shown, moved, share))
        own, shown, to = own + plane, shown + plane, to + plane
        tl.store(to, _blend(blue, own, shown, moved, share))

    @triton.jit
    def _levels(step, gains, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
        """A difference (WIDTH,) of two latent pixels, in grey levels."""
        c = tl.arange(0, WIDTH)
        there = (c < CHANNELS)[:, None] & (c < CHANNELS)[None, :]
        gain = tl.load(gains + c[:, None] * CHANNELS + c[None, :], there, 0.0).to(tl.float32)
        return tl.sum(step[:, None] * gain, 0)

    @triton.jit
    def _around(pairs, frame, x, y, rows, columns, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
        """Latent pixels at a place of a latent frame: here, beside, below and across."""
        c = tl.arange(0, WIDTH)
        there, at = c < CHANNELS, pairs + frame + c
        i, j = x.to(tl.int32), y.to(tl.int32)
        upper, lower = inside(j, rows) * columns, inside(j + 1, rows) * columns
        left, right = inside(i, columns), inside(i + 1, columns)
        here = tl.load(at + (upper + left) * 2 * CHANNELS, there, 0.0).to(tl.float32)
        beside = tl.load(at + (upper + right) * 2 * CHANNELS, there, 0.0).to(tl.float32)
        below = tl.load(at + (lower + left) * 2 * CHANNELS, there, 0.0).to(tl.float32)
        across = tl.load(at + (lower + right) * 2 * CHANNELS, there, 0.0).to(tl.float32)
        return here, beside, below, across

    @triton.jit
    def _came_from(numbers, places, pixel, COUNT: tl.constexpr, SQUARE: tl.constexpr):
        """Of a pixel: the slot of its latent frame, and its place there in latent pixels."""
        x = (tl.load(places + 2 * pixel) - SQUARE // 2) / SQUARE
        y = (tl.load(places + 2 * pixel + 1) - SQUARE // 2) / SQUARE
        return slot(tl.load(numbers + pixel), COUNT), x, y

    @triton.jit
    def _slope(
        pairs, numbers, places, gains, first, step, columns, rows, COUNT: tl.constexpr,
        CHANNELS: tl.constexpr, FAINT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
        SQUARE: tl.constexpr,
    ):  # fmt: skip
        """That of a patch's edit, and the steps of its offset, in grey levels."""
        own = tl.full((), 0.0, tl.float32)
        shared, given = own, own
        for k in range(COLUMNS * COLUMNS):
            pixel = first + (k // COLUMNS * 16 + k % COLUMNS) * SQUARE
            frame, x, y = _came_from(numbers, places, pixel, COUNT, SQUARE)
            left, top = tl.floor(x), tl.floor(y)
            here, beside, below, _ = _around(
                pairs, frame * step, left, top, rows, columns, CHANNELS, WIDTH
            )
            its, its_beside, its_below, _ = _around(
                pairs + CHANNELS, frame * step, left, top, rows, columns, CHANNELS, WIDTH
            )
            result = _levels(beside - here, gains, CHANNELS, WIDTH)
            source = _levels(its_beside - its, gains, CHANNELS, WIDTH)
            own += tl.sum(result * result, 0)
            shared += tl.sum(result * source, 0)
            given += tl.sum(source * source, 0)
            result = _levels(below - here, gains, CHANNELS, WIDTH)
            source = _levels(its_below - its, gains, CHANNELS, WIDTH)
            own += tl.sum(result * result, 0)
            shared += tl.sum(result * source, 0)
            given += tl.sum(source * source, 0)
        count = 2 * COLUMNS * COLUMNS * CHANNELS
        own, shared, given = own / count, shared / count, given / count
        slope = tl.minimum(tl.maximum((shared + FAINT) / (given + FAINT), 0.0), 1.0)
        left_over = own - 2 * slope * shared + slope * slope * given
        return slope, tl.sqrt_rn(tl.maximum(left_over, 0.0))

    @triton.jit
    def _between(here, beside, below, across, right, down):
        """What lies between four latent pixels."""
        upper = here + (beside - here) * right
        return upper + (below + (across - below) * right - upper) * down

    @triton.jit(
        do_not_specialize=["own_slot"],
        do_not_specialize_on_alignment=["keep", "mask", "filled", "even"],
    )
    def _carry(
        own, last, source, keep, mask, pairs, numbers, places, gains, filled, even, step, own_slot,
        columns, rows, T: tl.constexpr, COUNT: tl.constexpr, CHANNELS: tl.constexpr,
        FAINT: tl.constexpr, EVEN: tl.constexpr, UNEVEN: tl.constexpr, WIDTH: tl.constexpr,
        COLUMNS: tl.constexpr, SQUARE: tl.constexpr,
    ):  # fmt: skip
        place = tl.program_id(0)
        computed = tl.load(keep + place) != 0
        moved = (tl.load(mask + place) != 0) & (computed == 0)
        c = tl.arange(0, WIDTH)
        there = c < CHANNELS
        steps = tl.full((), 0.0, tl.float32)
        slope = steps
        first = (place * T + T // 2) * 256 + SQUARE // 2 * 17
        if moved:
            slope, steps = _slope(
                pairs, numbers, places, gains, first, step, columns, rows, COUNT, CHANNELS, FAINT,
                WIDTH, COLUMNS, SQUARE,
            )  # fmt: skip
        for k in range(COLUMNS * COLUMNS):
            at = (place * COLUMNS * COLUMNS + k) * CHANNELS + c
            base = tl.load(source + at, there, 0.0).to(tl.float32)
            value = tl.load(own + at, there & computed, 0.0).to(tl.float32)
            value += tl.load(last + at, there & (computed == 0) & (moved == 0), 0.0).to(tl.float32)
            down, right = k // COLUMNS, k % COLUMNS
            if moved:
                pixel = first + (down * 16 + right) * SQUARE
                frame, x, y = _came_from(numbers, places, pixel, COUNT, SQUARE)
                left, top = tl.floor(x), tl.floor(y)
                here, beside, below, across = _around(
                    pairs, frame * step, left, top, rows, columns, CHANNELS, WIDTH
                )
                was = _between(here, beside, below, across, x - left, y - top)
                here, beside, below, across = _around(
                    pairs + CHANNELS, frame * step, left, top, rows, columns, CHANNELS, WIDTH
                )
                its_source = _between(here, beside, below, across, x - left, y - top)
                value = was + slope * (base - its_source)
            tl.store(filled + at, value, there)
            row = place // (columns // COLUMNS) * COLUMNS + down
            column = place % (columns // COLUMNS) * COLUMNS + right
            mine = pairs + own_slot * step + (row * columns + column) * 2 * CHANNELS + c
            tl.store(mine, value, there)
            tl.store(mine + CHANNELS, base, there)
        share = tl.minimum(tl.maximum((UNEVEN - steps) / (UNEVEN - EVEN), 0.0), 1.0)
        tl.store(even + place, share)
