"""Visible change: which patches no longer look like what they were last computed from, in pixels.

A patch is reused only while its source pixels look like those of its *anchor*, the latent frame in
which it was last computed. Of every pair of latent frames that one could stand in for the other,
four differences are taken in grey levels of 255, each over what an eye would notice:

- of the mean of the pixel frames: root mean square over the patch (a moved edge, texture);
- of the same: mean over cells of 4x4 pixels (something smaller than a patch), and over the patch
  (light, in which a flat area would show steps);
- of each pixel frame and the last one of the anchor, which is what is shown in its place: mean over
  cells, and its root mean square over the patch (a ball that crosses within a latent frame).

Each is divided by its limit, a multiple of one *tolerance*; the largest is the pair's change, and
reuse is allowed up to 1. Nothing is smoothed over places or time, so the bound is hard: no filter
comes after it. Sensor noise is estimated (`sensor_noise`) and its share of every difference taken
off, up to what the tolerance allows: whatever the noise, the root mean square stays below 1.5
times the tolerance.

Where there are only latents, they are weighted by what the decoder makes of each channel
(`streaming.StreamingAutoencoder.channel_gains`), so that their root mean square difference is in
grey levels as well (`appearance`), and stands for the first of the measures.

Runs in torch on the source's device, any batch size, without reading a value back; on a GPU as the
kernels of `visible_kernels`, which are tested against what is written here. Every patch is judged
by itself and by frames up to its own, so a stream and a file give the same masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels import visible as visible_kernels
from stillframe.kernels.shared import Step
from stillframe.kernels.visible import Limits
from stillframe.tokens.source import SourceBlock

__all__ = [
    "TOLERANCE",
    "Anchors",
    "VisibleChange",
    "VisibleMask",
    "VisibleScore",
    "appearance",
    "cells_of",
    "changed",
    "clip_change",
    "difference",
    "enlarged",
    "sensor_noise",
]

#: Grey levels of 255 that a patch may differ from its anchor by, root mean square (docs/method.md).
TOLERANCE = 3.0

_CELL = 4  # pixels a side, less where a patch is smaller
# limits of the other measures, in tolerances
_CELL_LIMIT = 2.0
_LIGHT_LIMIT = 0.67
_FRAME_LIMIT = 1.5
_FRAME_CELL_LIMIT = 3.0
# standard deviations of noise that the largest of many cells is allowed
_CELL_SPREAD = 4.0
# noise may excuse this much: with it, a root mean square stays below 1.5 tolerances
_NOISE_LIMIT = 1.25**0.5
_QUIET = 0.25  # quantile of the patches by their noise: some of a picture stands still
_EVEN = 0.5  # noise of a sensor is alike everywhere, within such a factor of its variance
_BLOCKS = 8  # whose least noise counts
_TOGETHER = 3  # latent frames of a whole clip whose noise is estimated together
_NEARLY = 0.95  # share computed from which a block is computed whole
# tolerances, in units of the one asked for, at which `VisibleScore` looks what would be computed
_LADDER = tuple(2.0 ** (k / 4) for k in range(-12, 25))


def _levels(pixels: Tensor, frames: int) -> Tensor:
    """(B, (S+1)*t, 3, H, W) in [0, 1] to (B, S, t, 3, H, W) in grey levels, without the first t."""
    return pixels.float().unflatten(1, (frames + 1, -1))[:, 1:] * 255


def _pooled(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Mean over squares of the last two dimensions, whatever comes before them."""
    return F.avg_pool2d(x.flatten(0, -4), size).unflatten(0, x.shape[:-3])


def _largest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, F, n, H, W) to (B, F, h, w): largest of squares and of all n."""
    return F.max_pool2d(x.amax(2), size)


def _patch(pixels: Tensor, block: SourceBlock) -> tuple[int, int]:
    return pixels.shape[-2] // block.grid.height, pixels.shape[-1] // block.grid.width


def _sides(block: SourceBlock) -> tuple[int, int, int]:
    return block.grid.frames, block.grid.height, block.grid.width


def _kernels(pixels: Tensor, block: SourceBlock) -> bool:
    return visible_kernels.supported(pixels, *_sides(block))


def _most_noise(tolerance: float) -> float:
    """Variance of a pixel that noise may excuse."""
    return 2 * (_NOISE_LIMIT * tolerance) ** 2


def sensor_noise(frames: Tensor, patch: tuple[int, int]) -> Tensor:
    """Variance of noise that is independent from pixel to pixel and from frame to frame.

    Of such noise, with differences d1, d2 of consecutive frames, half the mean of d1^2 and the mean
    of -d1*d2 are its variance, and neighbours in d1 do not go together. Motion has one of these,
    not all. The smaller counts, of the quieter patches (the first quartile), and only where patches
    agree: 0 if the third quartile is more than twice as large.

    Args:
        frames: (B, F, t, 3, H, W) grey levels; the first three of each t are looked at.
        patch: pixels of a patch.

    Returns:
        (B,) squared grey levels; 0 where t is below 3.
    """
    if frames.shape[2] < 3:
        return frames.new_zeros(frames.shape[0])
    step = frames[:, :, 1:3] - frames[:, :, :2]
    first, second = step[:, :, 0], step[:, :, 1]
    neighbours = F.pad(first[..., 1:] * first[..., :-1], (0, 1))
    moments = torch.stack([first.square(), first * second, neighbours], 2).mean(3)
    spread, together, along = _pooled(moments, patch).unbind(2)
    noise = torch.minimum(spread - along.abs(), -2 * together).clamp(min=0) / 2
    ranked = noise.flatten(2).sort(2).values
    places = ranked.shape[2]
    quiet, loud = ranked[..., int(_QUIET * places)], ranked[..., int((1 - _QUIET) * places)]
    # a picture that is repeated has no noise at all: the largest of the latent frames
    return torch.where(quiet >= _EVEN * loud, quiet, 0.0).amax(1)


class VisibleChange:
    """Change of every pair of a stream's frames that may stand in for each other, by the block.

    Args:
        tolerance: grey levels; see the module.

    Attributes:
        limits: what measures are compared with.

    Raises:
        ValueError: the tolerance is not above 0.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.limits = Limits(
            tolerance,
            _most_noise(tolerance),
            _CELL_LIMIT,
            _LIGHT_LIMIT,
            _FRAME_LIMIT,
            _FRAME_CELL_LIMIT,
            _CELL_SPREAD,
            _QUIET,
            _EVEN,
        )
        self._memory: list[Tensor] | None = None
        self._step: Step = self._measured
        self._grid = (0, 0, 0)

    def captured(self, faster: Callable[[Step], Step]) -> VisibleChange:
        """The same with what ``faster`` makes of its step, see ``shared.CapturedStep``.

        Kernels, where there are any, are too few for that.
        """
        self._step = faster(self._measured)
        return self

    @property
    def noise(self) -> Tensor:
        """(B,) variance of a pixel that noise excuses, as of the last call; the least of the latest
        blocks."""
        assert self._memory is not None
        return self._memory[0].amin(1).clamp(max=_most_noise(self.tolerance))

    def __call__(self, block: SourceBlock) -> Tensor:
        """Change in units of the tolerance, (B, S, S, h, w).

        At [:, a, t] is that of frame t from what it would be reused from: for a = 0 its anchor
        before the block (without one, the latent frame before it), else frame a - 1 of the block.
        Without meaning for a > t.

        Raises:
            ValueError: the block has neither pixels nor looks.
        """
        return self._judged(block, 1.0)[0]

    def mask(self, block: SourceBlock) -> Tensor:
        """What must be computed, (B, S, h, w) bool: `changed` of what a call would return."""
        change, keep = self._judged(block, block.leniency)
        return changed(change, block.leniency)[0] if keep is None else keep

    def _judged(self, block: SourceBlock, limit: float) -> tuple[Tensor, Tensor | None]:
        """Change, and where kernels found it, the mask for a limit."""
        if block.pixels is None:
            return self._of_looks(block), None
        if _kernels(block.pixels, block):
            measured = visible_kernels.measure(block.pixels, block.anchor, *_sides(block))
            memory = None if self._memory is None else self._memory[0]
            found = visible_kernels.judge(measured, memory, self.limits, limit, _BLOCKS)
            change, keep, recent = found
            self._memory = [recent]
            return change, keep
        frames = block.grid.frames
        self._grid = frames, *_patch(block.pixels, block)
        before, now = block.pixels.tensor_split([block.pixels.shape[1] // (frames + 1)], 1)
        anchor = block.anchor
        if anchor is None:
            anchor = torch.stack([before.float().mean(1), before[:, -1].float()], 1)
        # one tensor, so that the step can be a graph; float32 as anchors are, which are means
        change, self._memory = self._step(torch.cat([anchor.float(), now], 1), self._memory)
        return change, None

    def _of_looks(self, block: SourceBlock) -> Tensor:
        """From latents alone."""
        if block.look is None or block.look_anchor is None:
            raise ValueError("change is looked for in pixels or in weighted latents: give either")
        looks = torch.cat([block.look_anchor.unsqueeze(1), block.look], 1)
        grid, frames = block.grid, block.grid.frames
        rows = [
            F.pad((looks[:, a + 1 :] - looks[:, a : a + 1]).square().mean(3).sqrt(), (0, 0, a, 0))
            for a in range(frames)
        ]
        change = torch.stack(rows, 1) / self.tolerance
        return change.unflatten(3, (grid.height, grid.width))

    def _measured(self, given: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """From pixels: (B, 2 + S*t, 3, H, W) in [0, 1], and the noise of the latest blocks."""
        count, *patch = self._grid
        size = patch[0], patch[1]
        levels = given.float() * 255
        now = levels[:, 2:].unflatten(1, (count, -1))
        fresh = sensor_noise(now, size).unsqueeze(1)
        if memory is None:
            memory = [fresh.expand(-1, _BLOCKS)]
        recent = torch.cat([memory[0][:, 1:], fresh], 1)
        noise = recent.amin(1).clamp(max=_most_noise(self.tolerance))
        pair_noise = [scale * noise.view(-1, 1, 1, 1) for scale in (2 / now.shape[2], 2)]
        means = torch.cat([levels[:, :1], now.mean(2)], 1)
        lasts = torch.cat([levels[:, 1:2], now[:, :, -1]], 1)
        cells, last_cells = cells_of(now, size), cells_of(lasts, size)
        rows = []
        for a in range(count):
            frames = means[:, a + 1 :] - means[:, a : a + 1]
            shown = cells[:, a:] - last_cells[:, a : a + 1].unsqueeze(2)
            change = difference(frames, shown, pair_noise, size, self.tolerance)
            rows.append(F.pad(change, (0, 0, 0, 0, a, 0)))
        return torch.stack(rows, 1), [recent]


def cells_of(pixels: Tensor, patch: tuple[int, int]) -> Tensor:
    """Means of the cells that measures are taken over, (..., H', W') of (..., H, W) pixels."""
    return _pooled(pixels, math.gcd(_CELL, *patch))


def difference(
    mean: Tensor,
    shown: Tensor,
    noise: Sequence[Tensor],
    patch: tuple[int, int],
    tolerance: float,
) -> Tensor:
    """How far patches are from what would stand in for them: the largest measure over its limit.

    Args:
        mean: (B, F, 3, H, W) differences of means of pixel frames, in grey levels.
        shown: (B, F, t, 3, H', W') differences of cells, frame by frame.
        noise: variance of a pixel of ``mean``, and of one of a single frame's difference; (B, 1, 1,
            1) each.
        patch: pixels of a patch.
        tolerance: grey levels.

    Returns:
        (B, F, h, w), in units of the tolerance.
    """
    side = math.gcd(_CELL, *patch)
    in_cells = patch[0] // side, patch[1] // side
    mean_noise, area = noise[0], side * side
    square = _pooled(mean.square().mean(2, keepdim=True), patch).squeeze(2)
    cell = _pooled(mean, side)
    light = _pooled(cell.mean(2, keepdim=True), in_cells).squeeze(2).abs()
    flat = shown.flatten(2, 3).abs()
    shown_square = _pooled(shown.square().mean(3), in_cells).amax(2)
    one_cell, frame_cell = mean_noise / area, noise[1] / area
    measures = (
        (square - mean_noise).clamp(min=0).sqrt(),
        (_largest(cell.abs(), in_cells) - _CELL_SPREAD * one_cell.sqrt()) / _CELL_LIMIT,
        (light - _CELL_SPREAD * (mean_noise / (3 * patch[0] * patch[1])).sqrt()) / _LIGHT_LIMIT,
        (shown_square - frame_cell).clamp(min=0).sqrt() / _FRAME_LIMIT,
        (_largest(flat, in_cells) - _CELL_SPREAD * frame_cell.sqrt()) / _FRAME_CELL_LIMIT,
    )
    worst = measures[0]
    for measure in measures[1:]:
        worst = torch.maximum(worst, measure)
    return worst / tolerance


def clip_change(frames: Tensor, patch: tuple[int, int], tolerance: float) -> Tensor:
    """Change of every pair of latent frames of a whole clip, in both directions of time.

    Args:
        frames: (F, t, 3, H, W) in [0, 1], the pixel frames of every latent frame.
        patch: pixels of a patch.
        tolerance: grey levels, above 0.

    Returns:
        (F, F, h, w) in units of the tolerance: at [a, t] that of frame t from frame a, by the same
        measures as `VisibleChange`.
    """
    levels = frames.float() * 255
    noises = [sensor_noise(part.unsqueeze(0), patch) for part in levels.split(_TOGETHER)]
    noise = torch.stack(noises).amin().clamp(max=_most_noise(tolerance))
    pair_noise = [scale * noise for scale in (2 / levels.shape[1], 2)]
    means, cells = levels.mean(1), cells_of(levels, patch)
    rows = [
        difference(
            (means - mean).unsqueeze(0),
            (cells - last).unsqueeze(0),
            pair_noise,
            patch,
            tolerance,
        )
        for mean, last in zip(means, cells[:, -1], strict=True)
    ]
    return torch.cat(rows)


def changed(change: Tensor, limit: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """What must be computed if nothing may be reused that changed by more than a limit.

    Args:
        change: (..., S, S, h, w), see `VisibleChange`.
        limit: in units of the tolerance; of a tensor, the shape goes in front of change's.

    Returns:
        keep mask, and the change of every token from what it would have been reused from; (..., S,
        h, w) each. A token that is kept is what later frames of its place are compared with.
    """
    at = change.select(-4, 0)
    keep, differences = [], []
    for t in range(change.shape[-3]):
        here = at.select(-3, t)
        moved = here > limit
        keep.append(moved)
        differences.append(here.expand(moved.shape))
        if t + 1 < change.shape[-3]:
            at = torch.where(moved.unsqueeze(-3), change.select(-4, t + 1), at)
    return torch.stack(keep, -3), torch.stack(differences, -3)


class VisibleMask:
    """Keep masks of a stream by visible change. One object a stream; call it once a block.

    Args:
        tolerance: grey levels.
    """

    def __init__(self, tolerance: float) -> None:
        self.change = VisibleChange(tolerance)

    def __call__(self, block: SourceBlock) -> Tensor:
        """(B, S, h, w) bool, true where the token must be computed, wherever its content is now.

        A block of which next to nothing could be reused is computed whole: leaving out less than a
        twentieth takes longer than it saves.
        """
        followed = block.motion
        keep = self.change.mask(block) if followed is None else followed.mask(block.leniency)
        nearly = keep.sum((1, 2, 3), keepdim=True) > _NEARLY * keep[0].numel()
        return keep | nearly


class VisibleScore:
    """How much tokens changed, for whoever ranks them. One object a stream, called once a block.

    Args:
        tolerance: grey levels.
    """

    def __init__(self, tolerance: float) -> None:
        self.change = VisibleChange(tolerance)

    def __call__(self, block: SourceBlock) -> Tensor:
        """The highest tolerance at which a token would be computed, (B, S, h, w), at least 0.

        In units of the tolerance asked for: those above a level x are about what a tolerance x
        times as high computes. Found on a ladder of tolerances, a fourth of a doubling apart;
        between two rungs by the change itself.
        """
        followed = block.motion
        change = self.change(block) if followed is None else followed.changed()
        rungs = change.new_tensor(_LADDER)
        keep, differences = changed(change.unsqueeze(0), rungs.view(-1, 1, 1, 1))
        above = torch.cat([rungs[1:], rungs.new_tensor([float("inf")])]).view(-1, 1, 1, 1, 1)
        found = torch.where(keep, torch.minimum(differences, above), 0.0)
        lowest = differences[0].clamp(max=_LADDER[0])
        score = torch.maximum(found.amax(0), lowest)
        return score if followed is None else torch.minimum(score, followed.score())


def appearance(pixels: Tensor, block: SourceBlock) -> Tensor:
    """What patches look like, to be compared with each other later: means of cells.

    Args:
        pixels: ``SourceBlock.pixels``.
        block: for its grid.

    Returns:
        (B, S, N, M) grey levels.
    """
    if _kernels(pixels, block):
        return visible_kernels.look(pixels, *_sides(block))
    grid = block.grid
    side = math.gcd(_CELL, *_patch(pixels, block))
    cells = _pooled(_levels(pixels, grid.frames).mean(2), side)
    tall, wide = cells.shape[-2] // grid.height, cells.shape[-1] // grid.width
    cut = cells.unflatten(-1, (grid.width, wide)).unflatten(-3, (grid.height, tall))
    return cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


class Anchors:
    """Source pixels that every patch was last computed from; of one stream.

    Attributes:
        pixels: (B, 2, 3, H, W) mean and last of the pixel frames of each patch's latest computed
            latent frame, in [0, 1]; None before the first block.
    """

    def __init__(self) -> None:
        self.pixels: Tensor | None = None

    def advance(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """Take a block and the mask that it was computed with.

        Args:
            pixels: ``SourceBlock.pixels``.
            keep: (B, S, h, w) bool.

        Returns:
            staleness, (B, S, h, w) float32 in grey levels: root mean square difference between the
            source's mean over a latent frame and over the one that is shown in its place; 0 where
            computed.
        """
        if visible_kernels.supported(pixels, *keep.shape[1:]):
            self.pixels, staleness = visible_kernels.advance(pixels, self.pixels, keep)
            return staleness
        frames = pixels.unflatten(1, (keep.shape[1] + 1, -1))
        seen = torch.stack([frames[:, 1:].float().mean(2), frames[:, 1:, -1].float()], 2)
        patch = pixels.shape[-2] // keep.shape[-2], pixels.shape[-1] // keep.shape[-1]
        old, stale = self.pixels, []
        for now, computed in zip(seen.unbind(1), keep.unbind(1), strict=True):
            if old is None:
                old = now
            difference = (255 * (now[:, 0] - old[:, 0])).square().mean(1, keepdim=True)
            stale.append(F.avg_pool2d(difference, patch).squeeze(1).sqrt() * ~computed)
            old = torch.where(enlarged(computed, patch).unsqueeze(1).unsqueeze(1), now, old)
        self.pixels = old
        return torch.stack(stale, 1)


def enlarged(places: Tensor, patch: tuple[int, int]) -> Tensor:
    """Every place (..., h, w) as a patch of pixels, (..., H, W)."""
    return places.repeat_interleave(patch[0], -2).repeat_interleave(patch[1], -1)
