"""Patches that moved, in kernels; ``detection.motion`` in torch is their slow reference.

There the patches that moved are picked out, and how many they are is waited for. Here every patch
has a program, which does nothing more where nothing is asked. It follows the flow of each pixel
frame to what is known of the pixels there, samples the snapshots that they come from, compares, and
writes what became of its patch and what is known of its pixels from now on. What a program reads of
other patches is of the latent frame before, in tensors that nobody writes to meanwhile.

A patch is a tile (16 cells, 16 pixels of a cell), so that means of cells are sums over one axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.kernels.visible import Limits

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = [
    "Found",
    "Given",
    "Known",
    "Ring",
    "Rules",
    "brightness",
    "carry",
    "follow",
    "show",
    "supported",
]

_SIDE = 16  # pixels of a patch
_PIXELS = 1024  # of a program that takes their brightness
_WARPS = 4
_MOST = 32  # pictures of a ring, besides those of a block
_LUMA = (0.299, 0.587, 0.114)
# Half precision holds whole grey levels as they are, and so what half precision decoded; of other
# pictures it loses a sixteenth of a level at most.
_STORED = torch.float16


class Rules(NamedTuple):
    """By what patches are judged, see ``detection.traces``.

    Attributes:
        limits: of the measures.
        beyond: pixels over an edge that may be reused.
        scales: of a patch, least and most.
        noise: variance of a residual of means, and of frames, in that of a pixel.
        elsewhere: distance of tokens from another snapshot.
    """

    limits: Limits
    beyond: float
    scales: tuple[float, float]
    noise: tuple[float, float]
    elsewhere: float


class Known(NamedTuple):
    """What is known of a latent frame, see ``detection.traces.Trace``; all contiguous."""

    numbers: Tensor
    places: Tensor
    picture: Tensor
    placed: Tensor
    frames: Tensor
    tokens: Tensor


class Given(NamedTuple):
    """What a block's patches are judged from.

    Attributes:
        change: (S, S, N) float32 at their places, see ``detection.pixels.VisibleChange``.
        pixels: (S, t, 3, H, W) in [0, 1], contiguous.
        noise: () float32 variance of a pixel.
        limit: () float32 of change.
        number: () int64 of the first latent frame.
        longest: (N,) int64 latent frames that a patch may be moved for.
        keep: (S, N) bool what is computed; None: what changed by more than the limit.
    """

    change: Tensor
    pixels: Tensor
    noise: Tensor
    limit: Tensor
    number: Tensor
    longest: Tensor
    keep: Tensor | None


class Found(NamedTuple):
    """What becomes of a block's patches, see ``detection.traces.Frame``.

    Attributes:
        verdict: (S, 3, N) bool: computed, held, moved.
        measured: (S, 4, N) float32: change, staleness, motion (x, y).
        origin: (S, N) int64.
        numbers: (S, N, t, 16, 16) int32, of what moved; see ``detection.traces.Moved``.
        places: (S, N, t, 16, 16, 2) float32.
    """

    verdict: Tensor
    measured: Tensor
    origin: Tensor
    numbers: Tensor
    places: Tensor


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


def supported(pixels: Tensor, height: int, width: int) -> bool:
    """Whether there are kernels for pixel frames, on their device.

    Args:
        pixels: (..., S, t, 3, H, W).
        height, width: h, w of the grid.
    """
    if triton is None or not (pixels.is_cuda or (_INTERPRETED and pixels.device.type == "cpu")):
        return False
    frames, times, *shape = pixels.shape[-5:]
    return (
        shape == [3, height * _SIDE, width * _SIDE]
        and pixels.dtype in (torch.float32, torch.float16, torch.bfloat16)
        # the kernels count in 32 bits
        and max(_MOST + frames, 2 * times) * shape[0] * shape[1] * shape[2] < 2**31
    )


def brightness(pictures: Tensor, scale: float) -> Tensor:
    """Luma (n, H, W) uint8 of (n, 3, H, W), contiguous, of which 1 is ``scale`` grey levels."""
    count, _, height, width = pictures.shape
    luma = torch.empty(count, height, width, dtype=torch.uint8, device=pictures.device)
    _brightness[(triton.cdiv(height * width, _PIXELS), count)](
        pictures, luma, float(scale), height * width,
        RED=_LUMA[0], GREEN=_LUMA[1], BLUE=_LUMA[2], PIXELS=_PIXELS, num_warps=_WARPS,
    )  # fmt: skip
    return luma


def follow(
    given: Given, t: int, flow: Tensor, before: Known, anchor: Tensor, ring: Ring, rules: Rules,
    found: Found,
) -> Known:  # fmt: skip
    """What becomes of a latent frame.

    Args:
        given: of the block.
        t: which of its latent frames.
        flow: (t, H, W, 2) float32 to the picture of the one before.
        before: what is known of that.
        anchor: (N,) int32 which row of ``given.change`` each place is compared with; written to.
        ring: snapshots of the source, in grey levels.
        rules: by which patches are judged.
        found: is written to.

    Returns:
        what is known of it.
    """
    (frames, times, _, rows, columns), limits = given.pixels.shape, rules.limits
    height, width = rows // _SIDE, columns // _SIDE
    after = Known(*(torch.empty_like(x) for x in before))
    some = given.change if given.keep is None else given.keep.view(torch.uint8)
    _follow[(height * width,)](
        given.change, some, given.noise, given.limit, given.number, given.longest,
        given.pixels[t], flow, ring.pictures, *_bytes(before), anchor,
        found.numbers[t], found.places[t], *_bytes(after),
        found.verdict[t].view(torch.uint8), found.measured[t], found.origin[t],
        t, width, height, limits.tolerance,
        GIVEN=given.keep is not None, T=times, MIDDLE=times // 2, FRAMES=frames,
        COUNT=len(ring.pictures), BEYOND=rules.beyond, LEAST=rules.scales[0], MOST=rules.scales[1],
        MEAN_NOISE=rules.noise[0], FRAME_NOISE=rules.noise[1], ELSEWHERE=rules.elsewhere,
        CELL=limits.cell, LIGHT=limits.light, FRAME=limits.frame, FRAME_CELL=limits.frame_cell,
        SPREAD=limits.spread, num_warps=_WARPS,
    )  # fmt: skip
    return after


def _bytes(known: Known) -> list[Tensor]:
    """Tensors as kernels take them."""
    return [x.view(torch.uint8) if x.dtype == torch.bool else x for x in known]


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
    own: Tensor, last: Tensor, source: Tensor, keep: Tensor, mask: Tensor, edits: Tensor,
    numbers: Tensor, places: Tensor, gains: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Results of a latent frame, and how far edits differ, see ``engine.results``.

    Args:
        own: (N, P) of what was computed.
        last: (N, P) results of the latent frame before.
        source: (N, P).
        keep, mask: (N,) bool, computed and moved.
        edits: (K, h*p, w*p, C) ring of them, by number of the latent frame; P is p*p*C.
        numbers, places: (N, t, 16, 16) and (N, t, 16, 16, 2), see `Found`.
        gains: (C, C) of channels in grey levels.

    Returns:
        (N, P), and (N,) float32 grey levels, 0 where nothing moved.
    """
    count, rows, columns, channels = edits.shape
    tokens, size = own.shape
    side = round((size // channels) ** 0.5)
    filled, steps = torch.empty_like(last), torch.empty(tokens, device=own.device)
    own, last, source, edits, gains = (x.contiguous() for x in (own, last, source, edits, gains))
    _carry[(tokens,)](
        own, last, source, keep.view(torch.uint8), mask.view(torch.uint8), edits, numbers, places,
        gains, filled, steps, columns, rows, T=numbers.shape[1], COUNT=count, CHANNELS=channels,
        WIDTH=triton.next_power_of_2(channels), COLUMNS=side, SQUARE=_SIDE // side, num_warps=1,
    )  # fmt: skip
    return filled, steps


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _whole(x):
        """Nearest whole number, of two the even one: floats that large have no fraction."""
        return (x + 12582912.0) - 12582912.0

    @triton.jit
    def _slot(number, COUNT: tl.constexpr):
        """Of a latent frame in a ring; numbers may be below 0."""
        return (number % COUNT + COUNT) % COUNT

    @triton.jit
    def _inside(x, size):
        return tl.minimum(tl.maximum(x, 0), size - 1)

    @triton.jit
    def _pixels():
        """Where the pixels of a patch are, x and y, (16, 16): cells, pixels of a cell."""
        cell, pixel = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
        return cell % 4 * 4 + pixel % 4, cell // 4 * 4 + pixel // 4

    @triton.jit
    def _brightness(
        pictures, luma, scale, size, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr,
        PIXELS: tl.constexpr,
    ):  # fmt: skip
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = pixel < size
        at = pictures + tl.program_id(1) * 3 * size + pixel
        red = tl.load(at, there, 0.0).to(tl.float32) * scale
        green = tl.load(at + size, there, 0.0).to(tl.float32) * scale
        blue = tl.load(at + 2 * size, there, 0.0).to(tl.float32) * scale
        mixed = _whole(RED * red + GREEN * green + BLUE * blue)
        mixed = tl.minimum(tl.maximum(mixed, 0.0), 255.0)
        tl.store(luma + tl.program_id(1) * size + pixel, mixed.to(tl.uint8), there)

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
    def _sampled(ring, number, x, y, line, rows, COUNT: tl.constexpr):
        """Red, green and blue of snapshots at places, bicubic; edges are repeated."""
        y = tl.minimum(tl.maximum(y, 0.0), 1.0 * (rows - 1))
        # far beyond an edge everything is that edge, and integers have an end
        x = tl.minimum(tl.maximum(x, -4.0), 1.0 * (line + 3))
        left, top = tl.floor(x), tl.floor(y)
        wa, wb, wc, wd = _cubic(x - left)
        va, vb, vc, vd = _cubic(y - top)
        i, j = left.to(tl.int32), top.to(tl.int32)
        a, b = _inside(i - 1, line), _inside(i, line)
        c, d = _inside(i + 1, line), _inside(i + 2, line)
        at = ring + _slot(number, COUNT) * 3 * rows * line
        first, second = at + _inside(j - 1, rows) * line, at + _inside(j, rows) * line
        third, fourth = at + _inside(j + 1, rows) * line, at + _inside(j + 2, rows) * line
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
    def _over(x, size, BEYOND: tl.constexpr):
        return (x < -BEYOND) | (x > 1.0 * (size - 1) + BEYOND)

    @triton.jit
    def _traced(flow, numbers, places, x, y, line, rows, BEYOND: tl.constexpr):
        """Where pixels are shown first-hand: number, x, y; and 1 where that is beyond an edge."""
        at = flow + 2 * (y * line + x)
        to_x, to_y = x.to(tl.float32) + tl.load(at), y.to(tl.float32) + tl.load(at + 1)
        near_x = tl.minimum(tl.maximum(_whole(to_x), 0.0), 1.0 * (line - 1))
        near_y = tl.minimum(tl.maximum(_whole(to_y), 0.0), 1.0 * (rows - 1))
        near = near_y.to(tl.int32) * line + near_x.to(tl.int32)
        was_x = tl.load(places + 2 * near) + (to_x - near_x)
        was_y = tl.load(places + 2 * near + 1) + (to_y - near_y)
        over = _over(to_x, line, BEYOND) | _over(to_y, rows, BEYOND)
        over = over | _over(was_x, line, BEYOND) | _over(was_y, rows, BEYOND)
        return tl.load(numbers + near), was_x, was_y, over.to(tl.int32)

    @triton.jit
    def _stretched(
        flow, numbers, places, x, y, right, down, line, rows, LEAST: tl.constexpr,
        MOST: tl.constexpr,
    ):  # fmt: skip
        """1 where the way from a pixel to another is too long or too short where they came from."""
        n, from_x, from_y, _ = _traced(flow, numbers, places, x, y, line, rows, 0.0)
        m, to_x, to_y, _ = _traced(flow, numbers, places, x + right, y + down, line, rows, 0.0)
        wide, tall = to_x - from_x, to_y - from_y
        scale = tl.sqrt_rn(wide * wide + tall * tall) / 15
        return ((n == m) & ((scale < LEAST) | (scale > MOST))).to(tl.int32)

    @triton.jit
    def _cells(residual):
        """Largest mean of a cell, and their squares' sum, of (16, 16)."""
        cells = tl.sum(residual, 1) / 16
        return tl.max(tl.abs(cells), 0), tl.sum(cells * cells, 0)

    @triton.jit
    def _square(x):
        return tl.sum(tl.sum(x * x, 1), 0)

    @triton.jit
    def _compared(
        pixels, flow, ring, numbers, places, to_numbers, to_places, x, y, line, rows, latent,
        T: tl.constexpr, MIDDLE: tl.constexpr, COUNT: tl.constexpr, BEYOND: tl.constexpr,
    ):  # fmt: skip
        """A patch less what it came from: sums of the frames; largest cell and mean square of cells
        of a frame; whether anything is beyond an edge; least number that the last frame comes from;
        and where the middle one comes from, and how it looks."""
        column, line_of = _pixels()
        plane, within = rows * line, (y + line_of) * line + x + column
        to = line_of * 16 + column
        red = tl.zeros((16, 16), tl.float32)
        green, blue, mid_x, mid_y = red, red, red, red
        mid_red, mid_green, mid_blue = red, red, red
        mid_number = tl.zeros((16, 16), tl.int32)
        over = tl.zeros((16, 16), tl.int32)
        cell = tl.full((), 0.0, tl.float32)
        square = tl.full((), 0.0, tl.float32)
        least = latent
        for f in range(T):
            number, was_x, was_y, out = _traced(
                flow + 2 * f * plane, numbers, places, x + column, y + line_of, line, rows, BEYOND
            )
            over = over | out
            least = tl.min(tl.min(number, 1), 0)
            tl.store(to_numbers + f * 256 + to, number)
            tl.store(to_places + 2 * (f * 256 + to), was_x)
            tl.store(to_places + 2 * (f * 256 + to) + 1, was_y)
            r, g, b = _sampled(ring, number, was_x, was_y, line, rows, COUNT)
            middle = f == MIDDLE
            mid_number = tl.where(middle, number, mid_number)
            mid_x, mid_y = tl.where(middle, was_x, mid_x), tl.where(middle, was_y, mid_y)
            mid_red, mid_green = tl.where(middle, r, mid_red), tl.where(middle, g, mid_green)
            mid_blue = tl.where(middle, b, mid_blue)
            at = pixels + f * 3 * plane + within
            r = tl.load(at).to(tl.float32) * 255 - r
            g = tl.load(at + plane).to(tl.float32) * 255 - g
            b = tl.load(at + 2 * plane).to(tl.float32) * 255 - b
            red, green, blue = red + r, green + g, blue + b
            r_cell, r_square = _cells(r)
            g_cell, g_square = _cells(g)
            b_cell, b_square = _cells(b)
            cell = tl.maximum(cell, tl.maximum(r_cell, tl.maximum(g_cell, b_cell)))
            square = tl.maximum(square, (r_square + g_square + b_square) / 48)
        beyond = tl.max(tl.max(over, 1), 0)
        sums = red, green, blue
        seen = mid_number, mid_x, mid_y, mid_red, mid_green, mid_blue
        return sums, cell, square, beyond, least, seen

    @triton.jit
    def _worst(
        red, green, blue, shown_cell, shown_square, variance, MEAN_NOISE: tl.constexpr,
        FRAME_NOISE: tl.constexpr, CELL: tl.constexpr, LIGHT: tl.constexpr, FRAME: tl.constexpr,
        FRAME_CELL: tl.constexpr, SPREAD: tl.constexpr,
    ):  # fmt: skip
        """Largest measure of mean residuals over its limit, ``detection.pixels.difference``, and
        their root mean square; in grey levels."""
        of_mean, of_frame_cell = MEAN_NOISE * variance, FRAME_NOISE * variance / 16
        square = (_square(red) + _square(green) + _square(blue)) / 768
        worst = tl.sqrt_rn(tl.maximum(square - of_mean, 0.0))
        r_cell, _ = _cells(red)
        g_cell, _ = _cells(green)
        b_cell, _ = _cells(blue)
        cell = tl.maximum(r_cell, tl.maximum(g_cell, b_cell)) - SPREAD * tl.sqrt_rn(of_mean / 16)
        light = tl.abs(tl.sum(tl.sum(red + green + blue, 1), 0)) / 768
        light -= SPREAD * tl.sqrt_rn(of_mean / 768)
        worst = tl.maximum(worst, tl.maximum(cell / CELL, light / LIGHT))
        shown = tl.sqrt_rn(tl.maximum(shown_square - of_frame_cell, 0.0))
        shown_cell -= SPREAD * tl.sqrt_rn(of_frame_cell)
        worst = tl.maximum(worst, tl.maximum(shown / FRAME, shown_cell / FRAME_CELL))
        return worst, tl.sqrt_rn(square)

    @triton.jit
    def _far(pixels, picture, plane, T: tl.constexpr):
        """Root mean square of a patch's mean less a picture, in grey levels."""
        total = tl.full((), 0.0, tl.float32)
        for colour in range(3):
            mean = tl.load(pixels + colour * plane).to(tl.float32)
            for f in range(1, T):
                mean += tl.load(pixels + (3 * f + colour) * plane).to(tl.float32)
            total += _square(mean * 255 / T - tl.load(picture + colour * plane))
        return tl.sqrt_rn(total / 768)

    @triton.jit
    def _origin(
        frames, tokens, number, wanted_x, wanted_y, here_x, here_y, width, height,
        ELSEWHERE: tl.constexpr,
    ):  # fmt: skip
        """Which token around a place is the one that was computed nearest to where is wanted."""
        k = tl.arange(0, 16)
        x = _inside(_whole(here_x).to(tl.int32) + k % 3 - 1, width)
        y = _inside(_whole(here_y).to(tl.int32) + k // 3 - 1, height)
        token = tl.where(k < 9, y * width + x, 0)
        was = tl.load(tokens + token).to(tl.int32)
        same = tl.load(frames + token).to(tl.int32) == number
        apart_x = (was % width).to(tl.float32) - wanted_x
        apart_y = (was // width).to(tl.float32) - wanted_y
        beside_x, beside_y = x.to(tl.float32) - here_x, y.to(tl.float32) - here_y
        near = apart_x * apart_x + apart_y * apart_y
        far = ELSEWHERE + beside_x * beside_x + beside_y * beside_y
        far = tl.where(k < 9, tl.where(same, near, far), float("inf"))
        return tl.sum(tl.where(k == tl.argmin(far, 0), token, 0), 0)

    @triton.jit
    def _follow(
        change, asked_keep, noise, limit, number, longest, pixels, flow, ring,
        numbers, places, picture, placed, frames, tokens, anchor, to_numbers, to_places,
        new_numbers, new_places, new_picture, new_placed, new_frames, new_tokens,
        verdict, measured, origin, t, width, height, tolerance,
        GIVEN: tl.constexpr, T: tl.constexpr, MIDDLE: tl.constexpr, FRAMES: tl.constexpr,
        COUNT: tl.constexpr, BEYOND: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
        MEAN_NOISE: tl.constexpr, FRAME_NOISE: tl.constexpr, ELSEWHERE: tl.constexpr,
        CELL: tl.constexpr, LIGHT: tl.constexpr, FRAME: tl.constexpr, FRAME_CELL: tl.constexpr,
        SPREAD: tl.constexpr,
    ):  # fmt: skip
        place = tl.program_id(0)
        count, line, rows = width * height, width * 16, height * 16
        x, y, plane = place % width * 16, place // width * 16, line * rows
        latent = (tl.load(number) + t).to(tl.int32)
        most = tl.load(limit)
        row = tl.load(anchor + place)
        still = tl.load(change + (row * FRAMES + t) * count + place)
        still = tl.where(tl.load(placed + place) != 0, still, float("inf"))
        differs = still > most
        asked = differs
        if GIVEN:
            computed = tl.load(asked_keep + t * count + place) != 0
            asked = asked & (computed == 0)

        best = tl.full((), float("inf"), tl.float32)
        stale = tl.full((), 0.0, tl.float32)
        step_x, step_y, from_x, from_y = stale, stale, stale, stale
        from_number = latent
        seen_x = tl.zeros((16, 16), tl.float32)
        seen_y, red, green, blue = seen_x, seen_x, seen_x, seen_x
        seen_number = tl.zeros((16, 16), tl.int32)
        column, line_of = _pixels()
        at = (y + line_of) * line + x + column
        if asked:
            sums, cell, square, over, least, seen = _compared(
                pixels, flow, ring, numbers, places, to_numbers + place * T * 256,
                to_places + place * T * 512, x, y, line, rows, latent, T, MIDDLE, COUNT, BEYOND,
            )  # fmt: skip
            seen_number, seen_x, seen_y, red, green, blue = seen
            worst, stale = _worst(
                sums[0] / T, sums[1] / T, sums[2] / T, cell, square, tl.load(noise),
                MEAN_NOISE, FRAME_NOISE, CELL, LIGHT, FRAME, FRAME_CELL, SPREAD,
            )  # fmt: skip
            last = flow + 2 * (T - 1) * plane
            wide = _stretched(last, numbers, places, x, y + 8, 15, 0, line, rows, LEAST, MOST)
            tall = _stretched(last, numbers, places, x + 8, y, 0, 15, line, rows, LEAST, MOST)
            old = latent - least > tl.load(longest + place)
            lost = (over + wide + tall > 0) | old
            best = tl.where(lost, float("inf"), tl.div_rn(worst, tolerance))
            middle = flow + 2 * MIDDLE * plane
            from_number, from_x, from_y, _ = _traced(
                middle, numbers, places, x + 8, y + 8, line, rows, BEYOND
            )
            step = middle + 2 * ((y + 8) * line + x + 8)
            step_x, step_y = tl.load(step), tl.load(step + 1)
            if lost & (still == float("inf")):
                # where it is not computed either, what stays there is like nothing
                stale = _far(pixels + at, picture + at, plane, T)

        if GIVEN == 0:
            computed = asked & (best > most)
        reused = computed == 0
        held = reused & (still < float("inf")) & ((differs & (best < still)) == 0)
        moved = reused & (held == 0) & (best < float("inf"))
        token = place
        if moved:
            token = _origin(
                frames, tokens, from_number, (from_x - 8) / 16, (from_y - 8) / 16,
                x / 16 + step_x / 16, y / 16 + step_y / 16, width, height, ELSEWHERE,
            )  # fmt: skip

        tl.store(verdict + place, computed.to(tl.uint8))
        tl.store(verdict + count + place, held.to(tl.uint8))
        tl.store(verdict + 2 * count + place, moved.to(tl.uint8))
        tl.store(measured + place, best)
        tl.store(measured + count + place, stale)
        tl.store(measured + 2 * count + place, tl.where(moved, step_x, 0.0))
        tl.store(measured + 3 * count + place, tl.where(moved, step_y, 0.0))
        tl.store(origin + place, token)
        if computed & (t + 1 < FRAMES):
            tl.store(anchor + place, t + 1)
        tl.store(new_placed + place, (computed | held).to(tl.uint8))
        tl.store(new_frames + place, tl.where(moved, tl.load(frames + token), latent))
        tl.store(new_tokens + place, tl.where(moved, tl.load(tokens + token), place))
        tl.store(new_numbers + at, tl.where(moved, seen_number, latent))
        own_x, own_y = (x + column).to(tl.float32), (y + line_of).to(tl.float32)
        tl.store(new_places + 2 * at, tl.where(moved, seen_x, own_x))
        tl.store(new_places + 2 * at + 1, tl.where(moved, seen_y, own_y))
        now = pixels + MIDDLE * 3 * plane + at
        _paint(now, picture + at, red, computed, moved, new_picture + at)
        _paint(now + plane, picture + plane + at, green, computed, moved, new_picture + plane + at)
        now, old = now + 2 * plane, picture + 2 * plane + at
        _paint(now, old, blue, computed, moved, new_picture + 2 * plane + at)

    @triton.jit
    def _paint(now, old, sampled, computed, moved, to):
        """Store a colour of a patch: as it is now, where it came from, or as it was."""
        found = tl.where(moved, sampled, tl.load(old))
        tl.store(to, tl.where(computed, tl.load(now).to(tl.float32) * 255, found))

    @triton.jit
    def _blend(sampled, new, shown, moved, even):
        sampled = tl.minimum(tl.maximum(sampled, 0.0), 1.0)
        own = tl.load(new).to(tl.float32)
        mixed = sampled + even * (own - sampled)
        return tl.where(moved, mixed, tl.load(shown).to(tl.float32))

    @triton.jit
    def _show(
        shown, new, ring, numbers, places, mask, even, out, width, height, T: tl.constexpr,
        COUNT: tl.constexpr,
    ):  # fmt: skip
        place, f = tl.program_id(0), tl.program_id(1)
        line, rows = width * 16, height * 16
        x, y, plane = place % width * 16, place // width * 16, line * rows
        column, line_of = _pixels()
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
            red, green, blue = _sampled(ring, number, was_x, was_y, line, rows, COUNT)
        own, to = new + 3 * f * plane + at, out + 3 * f * plane + at
        shown += at
        tl.store(to, _blend(red, own, shown, moved, share))
        own, shown, to = own + plane, shown + plane, to + plane
        tl.store(to, _blend(green, own, shown, moved, share))
        own, shown, to = own + plane, shown + plane, to + plane
        tl.store(to, _blend(blue, own, shown, moved, share))

    @triton.jit
    def _graded(step, gains, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
        """Square of the difference (WIDTH,) of two edits, in grey levels."""
        c = tl.arange(0, WIDTH)
        there = (c < CHANNELS)[:, None] & (c < CHANNELS)[None, :]
        gain = tl.load(gains + c[:, None] * CHANNELS + c[None, :], there, 0.0).to(tl.float32)
        levels = tl.sum(step[:, None] * gain, 0)
        return tl.sum(levels * levels, 0)

    @triton.jit
    def _carry(
        own, last, source, keep, mask, edits, numbers, places, gains, filled, steps, columns, rows,
        T: tl.constexpr, COUNT: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
        COLUMNS: tl.constexpr, SQUARE: tl.constexpr,
    ):  # fmt: skip
        place = tl.program_id(0)
        computed = tl.load(keep + place) != 0
        moved = (tl.load(mask + place) != 0) & (computed == 0)
        c = tl.arange(0, WIDTH)
        there = c < CHANNELS
        total = tl.full((), 0.0, tl.float32)
        for k in range(COLUMNS * COLUMNS):
            at = (place * COLUMNS * COLUMNS + k) * CHANNELS + c
            value = tl.load(own + at, there & computed, 0.0).to(tl.float32)
            value += tl.load(last + at, there & (computed == 0) & (moved == 0), 0.0).to(tl.float32)
            if moved:
                down, right = (
                    k // COLUMNS * SQUARE + SQUARE // 2,
                    k % COLUMNS * SQUARE + SQUARE // 2,
                )
                pixel = (place * T + T // 2) * 256 + down * 16 + right
                x = (tl.load(places + 2 * pixel) - SQUARE // 2) / SQUARE
                y = (tl.load(places + 2 * pixel + 1) - SQUARE // 2) / SQUARE
                left, top = tl.floor(x), tl.floor(y)
                i, j = left.to(tl.int32), top.to(tl.int32)
                frame = (
                    edits + _slot(tl.load(numbers + pixel), COUNT) * rows * columns * CHANNELS + c
                )
                upper = frame + _inside(j, rows) * columns * CHANNELS
                lower = frame + _inside(j + 1, rows) * columns * CHANNELS
                first, second = _inside(i, columns) * CHANNELS, _inside(i + 1, columns) * CHANNELS
                here = tl.load(upper + first, there, 0.0).to(tl.float32)
                beside = tl.load(upper + second, there, 0.0).to(tl.float32)
                below = tl.load(lower + first, there, 0.0).to(tl.float32)
                across = tl.load(lower + second, there, 0.0).to(tl.float32)
                total += _graded(beside - here, gains, CHANNELS, WIDTH)
                total += _graded(below - here, gains, CHANNELS, WIDTH)
                here += (beside - here) * (x - left)
                below += (across - below) * (x - left)
                value = (
                    tl.load(source + at, there, 0.0).to(tl.float32)
                    + here
                    + (below - here) * (y - top)
                )
            tl.store(filled + at, value, there)
        tl.store(steps + place, tl.sqrt_rn(total / (2 * COLUMNS * COLUMNS * CHANNELS)))
