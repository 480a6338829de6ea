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

from stillframe.kernels import snapshots
from stillframe.kernels.snapshots import Ring
from stillframe.kernels.visible import Limits

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = [
    "SIDE",
    "Found",
    "Given",
    "Known",
    "Rules",
    "brightness",
    "follow",
    "supported",
]

#: Pixels along the side of a patch that there are kernels for.
SIDE = 16
_PIXELS = 1024  # of a program that takes their brightness
_WARPS = 4
_MOST = 32  # pictures of a ring, besides those of a block
_LUMA = (0.299, 0.587, 0.114)


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
        orders: (S, N) uint8, see ``detection.traces``.
    """

    change: Tensor
    pixels: Tensor
    noise: Tensor
    limit: Tensor
    number: Tensor
    longest: Tensor
    orders: Tensor


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
        shape == [3, height * SIDE, width * SIDE]
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
        ring: snapshots of the source, in grey levels; that of the latent frame is put in.
        rules: by which patches are judged.
        found: is written to.

    Returns:
        what is known of it.
    """
    (frames, times, _, rows, columns), limits = given.pixels.shape, rules.limits
    height, width = rows // SIDE, columns // SIDE
    after = Known(*(torch.empty_like(x) for x in before))
    _follow[(height * width,)](
        given.change, given.orders, given.noise, given.limit, given.number, given.longest,
        given.pixels[t], flow, ring.pictures, *_bytes(before), anchor,
        found.numbers[t], found.places[t], *_bytes(after),
        found.verdict[t].view(torch.uint8), found.measured[t], found.origin[t],
        t, width, height, float(limits.tolerance),
        T=times, MIDDLE=times // 2, FRAMES=frames,
        COUNT=len(ring.pictures), BEYOND=rules.beyond, LEAST=rules.scales[0], MOST=rules.scales[1],
        MEAN_NOISE=rules.noise[0], FRAME_NOISE=rules.noise[1], ELSEWHERE=rules.elsewhere,
        CELL=limits.cell, LIGHT=limits.light, FRAME=limits.frame, FRAME_CELL=limits.frame_cell,
        SPREAD=limits.spread, num_warps=_WARPS,
    )  # fmt: skip
    return after


def _bytes(known: Known) -> list[Tensor]:
    """Tensors as kernels take them."""
    return [x.view(torch.uint8) if x.dtype == torch.bool else x for x in known]


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

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
        mixed = snapshots.whole(RED * red + GREEN * green + BLUE * blue)
        mixed = tl.minimum(tl.maximum(mixed, 0.0), 255.0)
        tl.store(luma + tl.program_id(1) * size + pixel, mixed.to(tl.uint8), there)

    @triton.jit
    def _over(x, size, BEYOND: tl.constexpr):
        return (x < -BEYOND) | (x > 1.0 * (size - 1) + BEYOND)

    @triton.jit
    def _traced(flow, numbers, places, x, y, line, rows, BEYOND: tl.constexpr):
        """Where pixels are shown first-hand: number, x, y; and 1 where that is beyond an edge."""
        at = flow + 2 * (y * line + x)
        to_x, to_y = x.to(tl.float32) + tl.load(at), y.to(tl.float32) + tl.load(at + 1)
        near_x = tl.minimum(tl.maximum(snapshots.whole(to_x), 0.0), 1.0 * (line - 1))
        near_y = tl.minimum(tl.maximum(snapshots.whole(to_y), 0.0), 1.0 * (rows - 1))
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
        of a frame; whether anything is beyond an edge; least number that anything comes from; and
        where the middle one comes from, and how it looks."""
        column, line_of = snapshots.patch_pixels()
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
            least = tl.minimum(least, tl.min(tl.min(number, 1), 0))
            tl.store(to_numbers + f * 256 + to, number)
            tl.store(to_places + 2 * (f * 256 + to), was_x)
            tl.store(to_places + 2 * (f * 256 + to) + 1, was_y)
            r, g, b = snapshots.sampled(ring, number, was_x, was_y, line, rows, COUNT)
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
        x = snapshots.inside(snapshots.whole(here_x).to(tl.int32) + k % 3 - 1, width)
        y = snapshots.inside(snapshots.whole(here_y).to(tl.int32) + k // 3 - 1, height)
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

    # one kernel for all latent frames: each would take seconds to compile
    @triton.jit(do_not_specialize=["t"], do_not_specialize_on_alignment=["verdict", "origin"])
    def _follow(
        change, orders, noise, limit, number, longest, pixels, flow, ring,
        numbers, places, picture, placed, frames, tokens, anchor, to_numbers, to_places,
        new_numbers, new_places, new_picture, new_placed, new_frames, new_tokens,
        verdict, measured, origin, t, width, height, tolerance,
        T: tl.constexpr, MIDDLE: tl.constexpr, FRAMES: tl.constexpr,
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
        order = tl.load(orders + t * count + place)
        asked = differs & (order != 1) & (order != 3)

        best = tl.full((), float("inf"), tl.float32)
        stale = tl.full((), 0.0, tl.float32)
        step_x, step_y, from_x, from_y = stale, stale, stale, stale
        from_number = latent
        seen_x = tl.zeros((16, 16), tl.float32)
        seen_y, red, green, blue = seen_x, seen_x, seen_x, seen_x
        seen_number = tl.zeros((16, 16), tl.int32)
        column, line_of = snapshots.patch_pixels()
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

        computed = (order == 1) | ((order == 2) & asked & (best > most)) | ((order == 3) & differs)
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
        old, new, kept = picture + at, new_picture + at, ring + at
        kept += snapshots.slot(latent, COUNT) * 3 * plane
        _paint(now, old, red, computed, moved, new, kept)
        now, old, new, kept = now + plane, old + plane, new + plane, kept + plane
        _paint(now, old, green, computed, moved, new, kept)
        now, old, new, kept = now + plane, old + plane, new + plane, kept + plane
        _paint(now, old, blue, computed, moved, new, kept)

    @triton.jit
    def _paint(now, old, sampled, computed, moved, to, snapshot):
        """Store a colour of a patch: as it is now, where it came from, or as it was."""
        found = tl.where(moved, sampled, tl.load(old))
        found = tl.where(computed, tl.load(now).to(tl.float32) * 255, found)
        tl.store(to, found)
        # nothing that may be taken comes from the snapshot that this one replaces
        tl.store(snapshot, found.to(snapshot.dtype.element_ty))
