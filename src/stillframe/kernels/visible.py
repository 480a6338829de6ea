"""What `visible` looks for in pixels, in four kernels; its torch code is their slow reference.

A block is 15 MB of pixels a latent frame. Differences, squares, pools and maxima of every pair are
a hundred passes over it in torch, and as many launches; here a program reads a patch of a latent
frame and writes a handful of numbers. Which differences count, and by what limits, is `visible`'s:
this file knows patches of 16x16 pixels in cells of 4x4.

A patch is a tile (16 cells of 3 colours, 16 pixels of a cell), so that means of cells are sums over
one axis, and a program is one warp, whose sums need no shared memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["Limits", "Measured", "advance", "judge", "look", "measure", "supported"]

_SIDE = 16  # pixels of a patch
_LOOK = 48  # cells and colours of a patch
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MEASURES = 5
_WARPS = 1  # of a program that reads a patch
_PLACES = 128  # that a program judges
_RANKED = 8192  # patches that a program looks at in one go when it ranks them


class Limits(NamedTuple):
    """What measures are compared with, see `visible`.

    Attributes:
        tolerance: grey levels.
        most_noise: variance that noise may excuse.
        cell, light, frame, frame_cell: limits in tolerances; that of the means' square is 1.
        spread: standard deviations of noise that the largest of many cells is allowed.
        quiet: quantile of patches by their noise that counts.
        even: share of the opposite quantile that it must reach.
    """

    tolerance: float
    most_noise: float
    cell: float
    light: float
    frame: float
    frame_cell: float
    spread: float
    quiet: float
    even: float


class Measured(NamedTuple):
    """What is to be known about a block's patches, in grey levels.

    Attributes:
        pairs: (5, B, S, S, h, w), of latent frame [.., a, f] against what [:, a] stands for, see
            `visible.VisibleChange`: mean square of the means' difference, its largest cell, its
            mean; largest mean square of a frame's cells, largest of these. Nothing for a > f.
        noise: (B, S, h, w) variance of noise as each patch has it; nothing if ``times`` is below 3.
        times: t, pixel frames of a latent frame.
    """

    pairs: Tensor
    noise: Tensor
    times: int


def supported(pixels: Tensor, frames: int, height: int, width: int) -> bool:
    """Whether there are kernels for ``SourceBlock.pixels``, on their device.

    Args:
        pixels: (B, (S+1)*t, 3, H, W).
        frames, height, width: S, h, w of the block's grid.
    """
    if triton is None or not (pixels.is_cuda or (_INTERPRETED and pixels.device.type == "cpu")):
        return False
    times = pixels.shape[1] // (frames + 1)
    # the kernels count in 32 bits
    last = sum((n - 1) * stride for n, stride in zip(pixels.shape, pixels.stride(), strict=True))
    return (
        pixels.shape[1:] == (times * (frames + 1), 3, height * _SIDE, width * _SIDE)
        and times in (1, 2, 4, 8)
        and pixels.dtype in _DTYPES
        and pixels.stride(-1) == 1
        and max(last, pixels.numel()) < 2**31
    )


def look(pixels: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Means of cells of latent frames, (B, S, N, 48) grey levels, see `visible.appearance`."""
    batch, places = len(pixels), height * width
    cells = torch.empty(batch, frames, places, _LOOK, device=pixels.device)
    _look[(places * frames, batch)](
        pixels, cells, *pixels.stride()[:4], width, places,
        T=pixels.shape[1] // (frames + 1), FRAMES=frames, num_warps=_WARPS,
    )  # fmt: skip
    return cells


def measure(
    pixels: Tensor, anchor: Tensor | None, frames: int, height: int, width: int
) -> Measured:
    """Compare every pair of a block's latent frames.

    Args:
        pixels: ``SourceBlock.pixels``.
        anchor: ``SourceBlock.anchor``; without it, the latent frame before the block.
        frames, height, width: S, h, w.
    """
    batch, places = len(pixels), height * width
    times = pixels.shape[1] // (frames + 1)
    shape = batch, frames, height, width
    pairs = torch.empty(_MEASURES, batch, frames, *shape[1:], device=pixels.device)
    noise = torch.empty(shape, device=pixels.device)
    _measure[(places * frames, batch)](
        pixels, pixels if anchor is None else anchor.float().contiguous(), pairs, noise,
        *pixels.stride()[:4], width, places, batch,
        ANCHORED=anchor is not None, T=times, FRAMES=frames, num_warps=_WARPS,
    )  # fmt: skip
    return Measured(pairs, noise, times)


def judge(
    measured: Measured, memory: Tensor | None, limits: Limits, limit: float, blocks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Change of every pair, what must be computed by it, and the noise of the latest blocks.

    Args:
        measured: of this block.
        memory: (B, blocks) noise of the latest blocks before it, None of a first one.
        limits: what measures are compared with.
        limit: change above which a token is computed, in tolerances, see `visible.changed`.
        blocks: whose least noise counts, a power of two.

    Returns:
        change (B, S, S, h, w) in tolerances, 0 where it has no meaning; keep mask (B, S, h, w);
        memory for the next block.
    """
    batch, frames, height, width = measured.noise.shape
    places, device = height * width, measured.noise.device
    change = torch.empty(measured.pairs.shape[1:], device=device)
    keep = torch.empty(measured.noise.shape, dtype=torch.uint8, device=device)
    recent = torch.empty(batch, blocks, device=device)
    rows = triton.next_power_of_2(frames)
    chunk = min(triton.next_power_of_2(places), max(_RANKED // rows, 1))
    _judge[(triton.cdiv(places, _PLACES), batch)](
        measured.pairs, measured.noise, recent if memory is None else memory,
        change, keep, recent,
        float(limits.tolerance), float(limits.most_noise), float(limit),
        int(limits.quiet * places), int((1 - limits.quiet) * places), places, batch,
        CELL=limits.cell, LIGHT=limits.light, FRAME=limits.frame, FRAME_CELL=limits.frame_cell,
        SPREAD=limits.spread, EVEN=limits.even, T=measured.times, FRAMES=frames,
        FIRST=memory is None, BLOCKS=blocks, ROWS=rows, PLACES=_PLACES,
        CHUNK=chunk, CHUNKS=triton.cdiv(places, chunk), num_warps=8,
    )  # fmt: skip
    return change, keep.view(torch.bool), recent


def advance(pixels: Tensor, old: Tensor | None, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors after a block and how stale its tokens are, see `visible.Anchors.advance`.

    Args:
        pixels: ``SourceBlock.pixels``.
        old: (B, 2, 3, H, W) float32 anchors before it; without them, its first latent frame.
        keep: (B, S, h, w) bool.

    Returns:
        (B, 2, 3, H, W) float32, and (B, S, h, w) float32 in grey levels.
    """
    batch, frames, height, width = keep.shape
    places, device = height * width, pixels.device
    new = torch.empty(batch, 2, *pixels.shape[2:], device=device)
    stale = torch.empty(keep.shape, device=device)
    _advance[(places * frames, batch)](
        pixels, new if old is None else old.float().contiguous(),
        keep.contiguous().view(torch.uint8), new, stale,
        *pixels.stride()[:4], width, places,
        FIRST=old is None, T=pixels.shape[1] // (frames + 1), FRAMES=frames, num_warps=_WARPS,
    )  # fmt: skip
    return new, stale


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _within(colour, row, width):
        """Where the pixels of a patch lie, by the distances of its colours and its rows; which of
        them there are; and which have a neighbour, ``width`` columns away from the patch's first
        being the picture's edge. (64, 16) each, 16 cells of 3 colours and 16 pixels of a cell."""
        cell, pixel = tl.arange(0, 64)[:, None], tl.arange(0, 16)[None, :]
        column = cell % 4 * 4 + pixel % 4
        at = cell // 16 * colour + (cell % 16 // 4 * 4 + pixel // 4) * row + column
        return at, (cell < 48) & (pixel >= 0), (cell < 48) & (column + 1 < width)

    @triton.jit
    def _mean(at, frame, there, T: tl.constexpr):
        """Of the pixel frames of a latent frame, (64, 16) float32; 0 where there is nothing."""
        total = tl.load(at, there, 0.0).to(tl.float32)
        for t in tl.static_range(1, T):
            total += tl.load(at + t * frame, there, 0.0).to(tl.float32)
        return total / T

    @triton.jit
    def _look(
        pixels, cells, batch_stride, frame, colour, row, width, places, T: tl.constexpr,
        FRAMES: tl.constexpr,
    ):  # fmt: skip
        f = tl.program_id(0) % FRAMES
        place = tl.program_id(0) // FRAMES
        b = tl.program_id(1)
        at, there, _ = _within(colour, row, 16)
        at += (f + 1) * T * frame + place // width * 16 * row + place % width * 16
        mean = _mean(pixels + b * batch_stride + at, frame, there, T)
        n = tl.arange(0, 64)
        to = cells + ((b * FRAMES + f) * places + place) * 48 + n
        tl.store(to, tl.sum(mean * 255, 1) / 16, n < 48)

    @triton.jit
    def _variance(at, frame, there, beside):
        """Of noise, as one patch has it: `visible.sensor_noise` before patches are ranked."""
        before = tl.load(at, there, 0.0).to(tl.float32) * 255
        middle = tl.load(at + frame, there, 0.0).to(tl.float32) * 255
        after = tl.load(at + 2 * frame, there, 0.0).to(tl.float32) * 255
        first, second = middle - before, after - middle
        # the neighbour of a patch's last column is in the next patch
        neighbour = tl.load(at + frame + 1, beside, 0.0).to(tl.float32) * 255
        neighbour -= tl.load(at + 1, beside, 0.0).to(tl.float32) * 255
        spread = tl.sum(tl.sum(first * first, 1), 0) / 768
        together = tl.sum(tl.sum(first * second, 1), 0) / 768
        along = tl.sum(tl.sum(first * neighbour, 1), 0) / 768
        return tl.maximum(tl.minimum(spread - tl.abs(along), -2 * together), 0.0) / 2

    @triton.jit
    def _compare(own, mean, last, frame, there, to, step, T: tl.constexpr):
        """Store the five differences of a latent frame from a mean and a last frame (64, 16)."""
        last_cells = tl.sum(last, 1) / 16
        total = tl.zeros((64, 16), tl.float32)
        shown_cell = tl.zeros((64,), tl.float32)
        shown_square = 0.0
        for t in tl.static_range(T):
            now = tl.load(own + t * frame, there, 0.0).to(tl.float32) * 255
            total += now
            shown = tl.sum(now, 1) / 16 - last_cells
            shown_cell = tl.maximum(shown_cell, tl.abs(shown))
            shown_square = tl.maximum(shown_square, tl.sum(shown * shown, 0) / 48)
        difference = total / T - mean
        cells = tl.sum(difference, 1) / 16
        tl.store(to, tl.sum(tl.sum(difference * difference, 1), 0) / 768)
        tl.store(to + step, tl.max(tl.abs(cells), 0))
        tl.store(to + 2 * step, tl.abs(tl.sum(cells, 0)) / 48)
        tl.store(to + 3 * step, shown_square)
        tl.store(to + 4 * step, tl.max(shown_cell, 0))

    @triton.jit
    def _measure(
        pixels, anchor, pairs, noise, batch_stride, frame, colour, row, width, places, batch,
        ANCHORED: tl.constexpr, T: tl.constexpr, FRAMES: tl.constexpr,
    ):  # fmt: skip
        f = tl.program_id(0) % FRAMES
        place = tl.program_id(0) // FRAMES
        b = tl.program_id(1)
        y, x = place // width * 16, place % width * 16
        within, there, beside = _within(colour, row, width * 16 - x)
        corner = pixels + b * batch_stride + y * row + x + within
        own = corner + (f + 1) * T * frame
        if T >= 3:
            variance = _variance(own, frame, there, beside)
            tl.store(noise + (b * FRAMES + f) * places + place, variance)
        step = batch * FRAMES * FRAMES * places
        to = pairs + (b * FRAMES * FRAMES + f) * places + place
        if ANCHORED:
            # whole pictures one after the other
            plane, line = places * 256, width * 16
            old, _, _ = _within(plane, line, 16)
            old += b * 6 * plane + y * line + x
            mean = tl.load(anchor + old, there, 0.0) * 255
            last = tl.load(anchor + 3 * plane + old, there, 0.0) * 255
            _compare(own, mean, last, frame, there, to, step, T)
        for a in range(1 if ANCHORED else 0, FRAMES):
            if a <= f:
                other = corner + a * T * frame
                mean = _mean(other, frame, there, T) * 255
                last = tl.load(other + (T - 1) * frame, there, 0.0).to(tl.float32) * 255
                _compare(own, mean, last, frame, there, to + a * FRAMES * places, step, T)

    @triton.jit
    def _noise_of(
        noise, quiet, loud, places, EVEN: tl.constexpr, FRAMES: tl.constexpr, ROWS: tl.constexpr,
        CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    ):  # fmt: skip
        """Noise of a block from that of its patches (FRAMES, places), see `visible.sensor_noise`.

        Order statistics by bisection over the bits of floats, which are in order where they are
        not negative: the largest number that at most ``quiet``, or ``loud``, patches are below.
        """
        s, n = tl.arange(0, ROWS), tl.arange(0, CHUNK)
        low = tl.zeros((ROWS,), tl.int32)
        high = tl.zeros((ROWS,), tl.int32)
        for step in range(31):
            bit = 1 << (30 - step)
            low_try, high_try = low | bit, high | bit
            below_low = tl.zeros((ROWS,), tl.int32)
            below_high = tl.zeros((ROWS,), tl.int32)
            for chunk in range(CHUNKS):
                place = chunk * CHUNK + n
                there = (s < FRAMES)[:, None] & (place < places)[None, :]
                at = noise + s[:, None] * places + place[None, :]
                # minus zero is zero; what is not there is below nothing
                bits = tl.load(at, there, float("inf")).to(tl.int32, bitcast=True) & 0x7FFFFFFF
                below_low += tl.sum((bits < low_try[:, None]).to(tl.int32), 1)
                below_high += tl.sum((bits < high_try[:, None]).to(tl.int32), 1)
            low = tl.where(below_low <= quiet, low_try, low)
            high = tl.where(below_high <= loud, high_try, high)
        lower, upper = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
        # a picture that is repeated has no noise at all: the largest of the latent frames
        return tl.max(tl.where((s < FRAMES) & (lower >= EVEN * upper), lower, 0.0), 0)

    @triton.jit
    def _worst(
        pairs, step, there, variance, CELL: tl.constexpr, LIGHT: tl.constexpr, FRAME: tl.constexpr,
        FRAME_CELL: tl.constexpr, SPREAD: tl.constexpr, T: tl.constexpr,
    ):  # fmt: skip
        """Largest of the five measures over their limits, `visible.VisibleChange`; in grey levels.

        ``variance``: of a pixel, whose share is taken off: in squares of what a mean over a latent
        frame has, or a cell of one frame; of the largest of many, some deviations.
        """
        of_mean, of_frame_cell = 2 * variance / T, 2 * variance / 16
        square = tl.load(pairs, there, 0.0)
        worst = tl.sqrt_rn(tl.maximum(square - of_mean, 0.0))
        cell = tl.load(pairs + step, there, 0.0) - SPREAD * tl.sqrt_rn(of_mean / 16)
        light = tl.load(pairs + 2 * step, there, 0.0) - SPREAD * tl.sqrt_rn(of_mean / 768)
        worst = tl.maximum(worst, tl.maximum(cell / CELL, light / LIGHT))
        shown = tl.load(pairs + 3 * step, there, 0.0)
        worst = tl.maximum(worst, tl.sqrt_rn(tl.maximum(shown - of_frame_cell, 0.0)) / FRAME)
        shown_cell = tl.load(pairs + 4 * step, there, 0.0) - SPREAD * tl.sqrt_rn(of_frame_cell)
        return tl.maximum(worst, shown_cell / FRAME_CELL)

    @triton.jit
    def _judge(
        pairs, noise, memory, change, keep, recent, tolerance, most_noise, limit, quiet, loud,
        places, batch, CELL: tl.constexpr, LIGHT: tl.constexpr, FRAME: tl.constexpr,
        FRAME_CELL: tl.constexpr, SPREAD: tl.constexpr, EVEN: tl.constexpr, T: tl.constexpr,
        FRAMES: tl.constexpr, FIRST: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
        PLACES: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    ):  # fmt: skip
        b = tl.program_id(1)
        fresh = 0.0
        if T >= 3:
            # every program by itself: it takes less than a launch
            mine = noise + b * FRAMES * places
            fresh = _noise_of(mine, quiet, loud, places, EVEN, FRAMES, ROWS, CHUNK, CHUNKS)
        j = tl.arange(0, BLOCKS)
        before = tl.zeros((BLOCKS,), tl.float32) + fresh
        if not FIRST:
            older = tl.load(memory + b * BLOCKS + j + 1, j < BLOCKS - 1, 0.0)
            before = tl.where(j < BLOCKS - 1, older, before)
        tl.store(recent + b * BLOCKS + j, before, (j >= 0) & (tl.program_id(0) == 0))
        variance = tl.minimum(tl.min(before, 0), most_noise)
        place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
        step = batch * FRAMES * FRAMES * places
        anchor = tl.zeros((PLACES,), tl.int32)
        for f in range(FRAMES):
            here = tl.zeros((PLACES,), tl.float32)
            for a in range(FRAMES):
                at = ((b * FRAMES + a) * FRAMES + f) * places + place
                there = (place < places) & (a <= f)
                worst = _worst(
                    pairs + at, step, there, variance, CELL, LIGHT, FRAME, FRAME_CELL, SPREAD, T
                )
                worst = tl.where(there, tl.div_rn(worst, tolerance), 0.0)
                tl.store(change + at, worst, place < places)
                here = tl.where(anchor == a, worst, here)
            moved = here > limit
            tl.store(keep + (b * FRAMES + f) * places + place, moved.to(tl.uint8), place < places)
            anchor = tl.where(moved, f + 1, anchor)

    @triton.jit
    def _advance(
        pixels, held, keep, new, stale, batch_stride, frame, colour, row, width, places,
        FIRST: tl.constexpr, T: tl.constexpr, FRAMES: tl.constexpr,
    ):  # fmt: skip
        f = tl.program_id(0) % FRAMES
        place = tl.program_id(0) // FRAMES
        b = tl.program_id(1)
        y, x = place // width * 16, place % width * 16
        # the latent frame of the block that the place was last computed in; -1: none
        source = 0 if FIRST else -1
        mine = b * FRAMES * places + place
        for g in range(FRAMES - 1):
            earlier = tl.load(keep + mine + g * places) != 0
            source = tl.where(earlier & (g < f), g, source)
        computed = tl.load(keep + mine + f * places) != 0
        ends = f == FRAMES - 1
        within, there, _ = _within(colour, row, 16)
        corner = pixels + b * batch_stride + y * row + x + within
        plane, line = places * 256, width * 16
        old, _, _ = _within(plane, line, 16)
        old += b * 6 * plane + y * line + x
        # what was computed is itself, and is looked at only for what comes after the block
        asked = there & (ends | (computed == 0))
        source = tl.where(computed, f, source)
        own, other = corner + (f + 1) * T * frame, corner + (source + 1) * T * frame
        from_block, from_old = asked & (source >= 0), asked & (source < 0)
        now = _mean(own, frame, asked, T)
        # of these one is 0
        mean = _mean(other, frame, from_block, T) + tl.load(held + old, from_old, 0.0)
        difference = (now - mean) * 255
        square = tl.sum(tl.sum(difference * difference, 1), 0) / 768
        tl.store(stale + mine + f * places, tl.sqrt_rn(square))
        last = tl.load(other + (T - 1) * frame, from_block & ends, 0.0).to(tl.float32)
        last += tl.load(held + 3 * plane + old, from_old & ends, 0.0)
        tl.store(new + old, mean, asked & ends)
        tl.store(new + 3 * plane + old, last, asked & ends)
