"""Dense optical flow: where every pixel of some frames lies in one earlier picture.

T. Kroeger, R. Timofte, D. Dai, L. Van Gool: "Fast Optical Flow using Dense Inverse Search", ECCV
2016 (arXiv 1603.03590), without its variational refinement. From coarse to fine, patches are
matched by inverse compositional Gauss-Newton steps; a pixel's flow is the mean of the patches that
cover it, weighted by how well each of them explains that pixel.

What differs from the paper. Flow goes backward, so templates are the frames' patches. Neighbours
cannot be asked in turn on a GPU: instead a patch starts from the best of what the coarser level has
at its place, beside it, and no motion at all. Intensities are compared as they are, not less their
patch's mean: content is searched that can stand for the frame, and light is part of that. Weights
fall with the eighth power of the difference, so that next to an edge one side's patches decide, and
with the distance from a patch's middle, so that flow is continuous. The last level is the full
picture.

Kernels read pictures with a margin of replicated pixels, which is as far as a patch can lie outside
and still see anything else: so only a patch's corner is ever clamped. The torch code at the top is
their slow reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = ["dense_flow", "dense_flow_reference", "searchable"]

_SIDE = 8  # pixels of a patch
_STRIDE = 4  # between patches
_COARSEST = 5  # level: a pixel of it is 32 pixels wide
_LEAST = 12  # pixels that the coarsest level has at least in each direction
_STEPS = 8  # of Gauss-Newton
_LAST_STEPS = 4  # in the full picture, where starts are good and patches many
_BESIDE = 4  # pixels to the coarser level's flow that is also tried
# added to the Hessian's diagonal, in squares of grey levels: noise moves no flat patch
_DAMPING = 16.0
_ALIKE = 4.0  # squared difference, in grey levels, below which patches explain a pixel alike
_MARGIN = _SIDE + 2
_TILE = 4  # patches of a program
_PIXELS = 256  # of a program
_WARPS = 4  # that share them


def dense_flow(frames: Tensor, reference: Tensor) -> Tensor:
    """Flow from frames back to an earlier picture.

    No host synchronisation, and no shapes that depend on data: CUDA graphs can capture it.

    Args:
        frames: (n, H, W) uint8 luma, H and W multiples of 16 and 64 or more.
        reference: (H, W) uint8, on the same device.

    Returns:
        (n, H, W, 2) float32, (x, y) in pixels: ``frames[i](x, y)`` is about
        ``reference(x + u, y + v)``. Beyond its edges the reference counts as replicated.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    _check(frames, reference)
    if triton is None or not (frames.is_cuda or _INTERPRETED):
        return dense_flow_reference(frames, reference)
    pictures = _padded_pyramid(frames.contiguous(), reference.contiguous())
    flow = None
    for level in reversed(range(len(pictures))):
        flow = _densified(pictures[level], _searched(pictures[level], flow, _steps(level)))
    assert flow is not None
    return flow


def dense_flow_reference(frames: Tensor, reference: Tensor) -> Tensor:
    """The slow reference of `dense_flow`."""
    _check(frames, reference)
    pictures = [torch.cat([reference[None], frames]).float()]
    for _ in range(_levels(*reference.shape) - 1):
        pictures.append(_halved(pictures[-1]))
    flow = None
    for level in reversed(range(len(pictures))):
        earlier, now = pictures[level][0], pictures[level][1:]
        flow = _densified_reference(
            earlier, now, _searched_reference(earlier, now, flow, _steps(level))
        )
    assert flow is not None
    return flow


def searchable(height: int, width: int) -> bool:
    """Whether there is a dense flow of pictures of this size."""
    return height % 16 == width % 16 == 0 and min(height, width) >= 64


def _check(frames: Tensor, reference: Tensor) -> None:
    if frames.dtype != torch.uint8 or reference.dtype != torch.uint8:
        raise ValueError(f"pictures are uint8, not {frames.dtype} and {reference.dtype}")
    if frames.ndim != 3 or frames.shape[1:] != reference.shape:
        raise ValueError(
            f"frames are (n, H, W) and the reference (H, W), not {tuple(frames.shape)} "
            f"and {tuple(reference.shape)}"
        )
    height, width = reference.shape
    if not searchable(height, width):
        raise ValueError(f"pictures are 64 or more in multiples of 16, not {width}x{height}")


def _levels(height: int, width: int) -> int:
    """How many a pyramid has, the full picture included."""
    levels = 1
    while levels <= _COARSEST and min(height, width) >> levels >= _LEAST:
        levels += 1
    return levels


def _steps(level: int) -> int:
    return _STEPS if level else _LAST_STEPS


def _patches(pixels: int) -> int:
    """How many lie along so many pixels; the last one ends with them, whatever the stride."""
    return -(-(pixels - _SIDE) // _STRIDE) + 1


def _starts(pixels: int, device: torch.device) -> Tensor:
    """First pixels of patches."""
    return (_STRIDE * torch.arange(_patches(pixels), device=device)).clamp(max=pixels - _SIDE)


def _halved(pictures: Tensor) -> Tensor:
    """Means of 2x2 pixels; of an odd number of rows or columns the last is left out."""
    height, width = (2 * (side // 2) for side in pictures.shape[1:])
    even = pictures[:, :height, :width]
    return even.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))


def _sampled(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A picture (h, w) between its pixels, bilinear; edges are replicated."""
    height, width = picture.shape
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.long(), y.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    above = torch.lerp(picture[top, left], picture[top, right], x - left)
    below = torch.lerp(picture[bottom, left], picture[bottom, right], x - left)
    return torch.lerp(above, below, y - top)


def _searched_reference(
    reference: Tensor, frames: Tensor, coarser: Tensor | None, steps: int
) -> Tensor:
    """Displacements of a level's patches, (n, rows, columns, 2) pixels of it.

    Args:
        reference: (h, w).
        frames: (n, h, w).
        coarser: (n, h // 2, w // 2, 2) flow of the level above, in pixels of that.
        steps: of Gauss-Newton.
    """
    height, width = reference.shape
    rows, columns = _starts(height, frames.device), _starts(width, frames.device)
    within = torch.arange(_SIDE, device=frames.device)
    y = rows[:, None, None, None] + within[:, None]  # rows, 1, 8, 1
    x = columns[:, None, None] + within  # columns, 1, 8

    def pixels(down: int, right: int) -> Tensor:
        at = (y + down).clamp(0, height - 1), (x + right).clamp(0, width - 1)
        return frames[:, *at]

    template = pixels(0, 0)  # n, rows, columns, 8, 8
    slope_x = (pixels(0, 1) - pixels(0, -1)) / 2
    slope_y = (pixels(1, 0) - pixels(-1, 0)) / 2

    def difference(moved: Tensor) -> Tensor:
        by = moved[..., None, None, :]
        return _sampled(reference, x + by[..., 0], y + by[..., 1]) - template

    start = torch.zeros(*template.shape[:3], 2, device=frames.device)
    least = difference(start).square().sum((3, 4))
    for other in _other_starts(coarser, rows, columns):
        error = difference(other).square().sum((3, 4))
        better = error < least
        least = torch.where(better, error, least)
        start = torch.where(better[..., None], other, start)

    xx = slope_x.square().sum((3, 4)) + _DAMPING
    yy = slope_y.square().sum((3, 4)) + _DAMPING
    xy = (slope_x * slope_y).sum((3, 4))
    moved = start
    for _ in range(steps):
        apart = difference(moved)
        along_x, along_y = (apart * slope_x).sum((3, 4)), (apart * slope_y).sum((3, 4))
        step = torch.stack([yy * along_x - xy * along_y, xx * along_y - xy * along_x], -1)
        moved = moved - step / (xx * yy - xy * xy)[..., None]
    lost = (moved - start).square().sum(-1) > _SIDE**2
    return torch.where(lost[..., None], start, moved)


def _other_starts(coarser: Tensor | None, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """What patches may start from besides rest: the coarser flow in and around their middles."""
    if coarser is None:
        return []
    height, width = coarser.shape[1:3]
    y, x = (rows + _SIDE // 2) // 2, (columns + _SIDE // 2) // 2
    around = ((0, 0), (0, -_BESIDE), (0, _BESIDE), (-_BESIDE, 0), (_BESIDE, 0))
    return [
        2 * coarser[:, (y + down).clamp(0, height - 1)[:, None], (x + right).clamp(0, width - 1)]
        for down, right in around
    ]


def _nearness(pixels: Tensor, starts: Tensor) -> Tensor:
    """Of pixels to the middle of patches: falls evenly to nothing where they end."""
    return (_SIDE / 2 - (starts + (_SIDE - 1) / 2 - pixels).abs()).clamp(min=0)


def _densified_reference(reference: Tensor, frames: Tensor, patches: Tensor) -> Tensor:
    """Flow of a level's pixels, (n, h, w, 2), from that of its patches, `_searched_reference`."""
    height, width = reference.shape
    y, x = (torch.arange(side, device=frames.device) for side in reference.shape)
    total = torch.zeros(*frames.shape, 2, device=frames.device)
    weights = torch.zeros(frames.shape, device=frames.device)
    rows, columns = _starts(height, frames.device), _starts(width, frames.device)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column = y // _STRIDE + down, x // _STRIDE + right
            i, j = row.clamp(0, len(rows) - 1), column.clamp(0, len(columns) - 1)
            near_y = (row == i) * _nearness(y, rows[i])
            near_x = (column == j) * _nearness(x, columns[j])
            by = patches[:, i[:, None], j]
            apart = _sampled(reference, x + by[..., 0], y[:, None] + by[..., 1]) - frames
            weight = near_y[:, None] * near_x / (_ALIKE + apart.square()) ** 4
            total += weight[..., None] * by
            weights += weight
    return total / weights[..., None]


def _padded_pyramid(frames: Tensor, reference: Tensor) -> list[Tensor]:
    """The reference and the frames (n + 1, h + 2m, w + 2m) float32 of every level, margins of m
    replicated pixels around them."""
    count, (height, width) = len(frames) + 1, reference.shape
    pictures: list[Tensor] = []
    for level in range(_levels(height, width)):
        rows, columns = (height >> level) + 2 * _MARGIN, (width >> level) + 2 * _MARGIN
        picture = torch.empty(count, rows, columns, device=frames.device)
        finer = pictures[-1] if pictures else frames
        _picture[(triton.cdiv(rows * columns, _PIXELS), count)](
            finer, reference, picture, width if level == 0 else width >> (level - 1),
            finer.shape[1] * finer.shape[2], rows, columns,
            FULL=level == 0, MARGIN=_MARGIN, PIXELS=_PIXELS, num_warps=_WARPS,
        )  # fmt: skip
        pictures.append(picture)
    return pictures


def _searched(pictures: Tensor, coarser: Tensor | None, steps: int) -> Tensor:
    """`_searched_reference` of a padded level."""
    count, height, width = _extent(pictures)
    rows, columns = _patches(height), _patches(width)
    found = torch.empty(count, rows, columns, 2, device=pictures.device)
    some = found if coarser is None else coarser
    _search[(triton.cdiv(rows * columns, _TILE), count)](
        pictures, some, found, height, width, rows * columns, columns, *some.shape[1:3],
        COARSEST=coarser is None, STEPS=steps, DAMPING=_DAMPING, BESIDE=_BESIDE, SIDE=_SIDE,
        STRIDE=_STRIDE, MARGIN=_MARGIN, TILE=_TILE, num_warps=1,
    )  # fmt: skip
    return found


def _densified(pictures: Tensor, patches: Tensor) -> Tensor:
    """`_densified_reference` of a padded level."""
    count, height, width = _extent(pictures)
    flow = torch.empty(count, height, width, 2, device=pictures.device)
    # where the last patches are moved in to end with the picture, more of them cover a pixel
    even = (height - _SIDE) % _STRIDE == 0 and (width - _SIDE) % _STRIDE == 0
    _densify[(triton.cdiv(height * width, _PIXELS), count)](
        pictures, patches, flow, height, width, *patches.shape[1:3],
        SIDE=_SIDE, STRIDE=_STRIDE, LAST=0 if even else 1, ALIKE=_ALIKE, MARGIN=_MARGIN,
        PIXELS=_PIXELS, num_warps=_WARPS,
    )  # fmt: skip
    return flow


def _extent(pictures: Tensor) -> tuple[int, int, int]:
    """n, h, w of what a padded level holds."""
    count, height, width = pictures.shape
    return count - 1, height - 2 * _MARGIN, width - 2 * _MARGIN


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    # one kernel for all levels, of whose sizes some are multiples of 16; that makes no difference
    # to this one and the next, and a fifth more registers to `_densify`
    @triton.jit(do_not_specialize=["finer_width", "finer_size", "rows", "columns"])
    def _picture(
        finer, reference, picture, finer_width, finer_size, rows, columns, FULL: tl.constexpr,
        MARGIN: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        """A level with its margins: the full picture in float32, or means of 2x2 of the finer."""
        n = tl.program_id(1)
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = pixel < rows * columns
        y = tl.minimum(tl.maximum(pixel // columns - MARGIN, 0), rows - 2 * MARGIN - 1)
        x = tl.minimum(tl.maximum(pixel % columns - MARGIN, 0), columns - 2 * MARGIN - 1)
        if FULL:
            at = y * finer_width + x
            # the reference is the first, and what is not there is not read
            value = tl.load(reference + at, there & (n == 0), 0).to(tl.float32)
            frame = finer + (n - 1) * finer_size + at
            value += tl.load(frame, there & (n > 0), 0).to(tl.float32)
        else:
            line = finer_width + 2 * MARGIN
            at = finer + n * finer_size + (2 * y + MARGIN) * line + 2 * x + MARGIN
            value = tl.load(at, there, 0.0) + tl.load(at + 1, there, 0.0)
            value += tl.load(at + line, there, 0.0) + tl.load(at + line + 1, there, 0.0)
            value *= 0.25
        tl.store(picture + n * rows * columns + pixel, value, there)

    @triton.jit
    def _between(picture, line, x, y, right, down, within, last_x, last_y, MARGIN: tl.constexpr):
        """Bilinear samples ``within`` a square whose corner (x, y) moves by (right, down) pixels.

        The corner is kept from -MARGIN to (last_x, last_y), so that nothing beyond is read.
        """
        whole_x, whole_y = tl.floor(right), tl.floor(down)
        at_x = tl.minimum(tl.maximum(x + whole_x.to(tl.int32), -MARGIN), last_x)
        at_y = tl.minimum(tl.maximum(y + whole_y.to(tl.int32), -MARGIN), last_y)
        at = picture + ((at_y + MARGIN) * line + at_x + MARGIN) + within
        share_x, share_y = right - whole_x, down - whole_y
        value, beside = tl.load(at), tl.load(at + 1)
        below, across = tl.load(at + line), tl.load(at + line + 1)
        above = value + (beside - value) * share_x
        below += (across - below) * share_x
        return above + (below - above) * share_y

    @triton.jit
    def _best_start(
        pictures, line, template, x, y, within, last_x, last_y, coarser, coarser_height,
        coarser_width, COARSEST: tl.constexpr, BESIDE: tl.constexpr, SIDE: tl.constexpr,
        MARGIN: tl.constexpr, TILE: tl.constexpr,
    ):  # fmt: skip
        """No motion, or what of the coarser flow explains a patch (TILE, pixels) better."""
        right = tl.zeros((TILE, 1), tl.float32)
        down = tl.zeros((TILE, 1), tl.float32)
        apart = template - _between(
            pictures, line, x, y, right, down, within, last_x, last_y, MARGIN
        )
        least = tl.sum(apart * apart, 1, keep_dims=True)
        if not COARSEST:
            middle_y, middle_x = (y + SIDE // 2) // 2, (x + SIDE // 2) // 2
            for side in range(5):
                # in the middle, left, right, above, below
                aside = tl.where(side == 1, -BESIDE, tl.where(side == 2, BESIDE, 0))
                above = tl.where(side == 3, -BESIDE, tl.where(side == 4, BESIDE, 0))
                from_y = tl.minimum(tl.maximum(middle_y + above, 0), coarser_height - 1)
                from_x = tl.minimum(tl.maximum(middle_x + aside, 0), coarser_width - 1)
                other = coarser + (from_y * coarser_width + from_x) * 2
                try_right, try_down = 2 * tl.load(other), 2 * tl.load(other + 1)
                apart = template - _between(
                    pictures, line, x, y, try_right, try_down, within, last_x, last_y, MARGIN
                )  # fmt: skip
                error = tl.sum(apart * apart, 1, keep_dims=True)
                right = tl.where(error < least, try_right, right)
                down = tl.where(error < least, try_down, down)
                least = tl.minimum(least, error)
        return right, down

    @triton.jit(
        do_not_specialize=[
            *("height", "width", "patches", "columns", "coarser_height", "coarser_width"),
        ]
    )
    def _search(
        pictures, coarser, found, height, width, patches, columns, coarser_height, coarser_width,
        COARSEST: tl.constexpr, STEPS: tl.constexpr, DAMPING: tl.constexpr, BESIDE: tl.constexpr,
        SIDE: tl.constexpr, STRIDE: tl.constexpr, MARGIN: tl.constexpr, TILE: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(1)
        line = width + 2 * MARGIN
        size = line * (height + 2 * MARGIN)
        patch = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
        # what is beyond the last patch is moved into the picture, and not stored
        y = tl.minimum(patch // columns * STRIDE, height - SIDE)
        x = tl.minimum(patch % columns * STRIDE, width - SIDE)
        k = tl.arange(0, SIDE * SIDE)[None, :]
        # said to be scattered, or a warp's lanes would lie along a patch and sums cross all of them
        within = tl.max_contiguous(k // SIDE * line + k % SIDE, [1, 1])

        at = pictures + (n + 1) * size + (y + MARGIN) * line + x + MARGIN + within
        template = tl.load(at)
        slope_x = (tl.load(at + 1) - tl.load(at - 1)) * 0.5
        slope_y = (tl.load(at + line) - tl.load(at - line)) * 0.5
        last_x, last_y = width - SIDE + MARGIN - 1, height - SIDE + MARGIN - 1

        right, down = _best_start(
            pictures, line, template, x, y, within, last_x, last_y,
            coarser + n * coarser_height * coarser_width * 2, coarser_height, coarser_width,
            COARSEST, BESIDE, SIDE, MARGIN, TILE,
        )  # fmt: skip
        xx = tl.sum(slope_x * slope_x, 1, keep_dims=True) + DAMPING
        yy = tl.sum(slope_y * slope_y, 1, keep_dims=True) + DAMPING
        xy = tl.sum(slope_x * slope_y, 1, keep_dims=True)
        scale = 1 / (xx * yy - xy * xy)
        xx, yy, xy = xx * scale, yy * scale, xy * scale
        start_right, start_down = right, down
        for _step in range(STEPS):
            apart = (
                _between(pictures, line, x, y, right, down, within, last_x, last_y, MARGIN)
                - template
            )
            along_x = tl.sum(apart * slope_x, 1, keep_dims=True)
            along_y = tl.sum(apart * slope_y, 1, keep_dims=True)
            right -= yy * along_x - xy * along_y
            down -= xx * along_y - xy * along_x
        far_x, far_y = right - start_right, down - start_down
        lost = far_x * far_x + far_y * far_y > SIDE * SIDE
        to = found + (n * patches + patch) * 2
        tl.store(to, tl.where(lost, start_right, right), patch < patches)
        tl.store(to + 1, tl.where(lost, start_down, down), patch < patches)

    @triton.jit
    def _densify(
        pictures, found, flow, height, width, rows, columns, SIDE: tl.constexpr,
        STRIDE: tl.constexpr, LAST: tl.constexpr, ALIKE: tl.constexpr, MARGIN: tl.constexpr,
        PIXELS: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(1)
        line = width + 2 * MARGIN
        size = line * (height + 2 * MARGIN)
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = pixel < height * width
        y, x = pixel // width, pixel % width
        at = pictures + (n + 1) * size + (y + MARGIN) * line + x + MARGIN
        own = tl.load(at, there, 0.0)
        last_x, last_y = width + MARGIN - 2, height + MARGIN - 2
        mine = found + n * rows * columns * 2
        total_right = tl.zeros((PIXELS,), tl.float32)
        total_down = tl.zeros((PIXELS,), tl.float32)
        weights = tl.where(there, 0.0, 1.0)
        for below in tl.static_range(1 - SIDE // STRIDE, LAST + 1):
            row = y // STRIDE + below
            top = tl.minimum(row * STRIDE, height - SIDE)
            near_y = SIDE / 2 - tl.abs(top + (SIDE - 1) / 2 - y)
            in_row = there & (row >= 0) & (row < rows) & (near_y > 0)
            for beside in tl.static_range(1 - SIDE // STRIDE, LAST + 1):
                column = x // STRIDE + beside
                left = tl.minimum(column * STRIDE, width - SIDE)
                near_x = SIDE / 2 - tl.abs(left + (SIDE - 1) / 2 - x)
                covers = in_row & (column >= 0) & (column < columns) & (near_x > 0)
                patch = mine + (row * columns + column) * 2
                right, down = tl.load(patch, covers, 0.0), tl.load(patch + 1, covers, 0.0)
                apart = own - _between(pictures, line, x, y, right, down, 0, last_x, last_y, MARGIN)
                unlike = ALIKE + apart * apart
                unlike *= unlike
                weight = tl.where(covers, near_y * near_x / (unlike * unlike), 0.0)
                total_right += weight * right
                total_down += weight * down
                weights += weight
        to = flow + (n * height * width + pixel) * 2
        tl.store(to, total_right / weights, there)
        tl.store(to + 1, total_down / weights, there)
