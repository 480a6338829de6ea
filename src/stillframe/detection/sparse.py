"""Following the patches of one video of a stream, picked out, in torch: what ``motion`` says.

Of every latent frame the patches that are not like their place are looked at, and no others: so it
costs what moves, and how much that is has to be waited for. Kernels follow all patches at once
(``dense``); this is their reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.flow import OpticalFlow, luma
from stillframe.detection.pixels import cells_of, difference, enlarged
from stillframe.detection.traces import (
    BEYOND,
    COMPUTE,
    DECIDE,
    ELSEWHERE,
    LONGEST,
    NOISE,
    REACH,
    SCALES,
    STAY,
    Frame,
    Moved,
    Trace,
    longest_moves,
    middle,
)

__all__ = ["Snapshots", "SparseVideo", "cut", "pasted"]

_MARGIN = 2  # rows around a snapshot, so that sampling does not reach into the next one
_AROUND = 3  # patches around those that may have moved, in which flow is looked for


class Snapshots:
    """Pictures of the latest latent frames, to be sampled at places in fractions of a pixel.

    Args:
        like: (C, H, W), for their size, format and device.
        count: so many are kept.
    """

    def __init__(self, like: Tensor, count: int) -> None:
        channels, self._height, self._width = like.shape
        self._count, self._stride = count, self._height + 2 * _MARGIN
        self._pictures = like.new_zeros(1, channels, count * self._stride, self._width)

    def put(self, number: int, picture: Tensor) -> None:
        """Keep a picture (C, H, W) as that of a latent frame; the oldest one makes room."""
        start = number % self._count * self._stride
        padded = F.pad(picture.unsqueeze(0), (0, 0, _MARGIN, _MARGIN), mode="replicate")
        self._pictures[:, :, start : start + self._stride] = padded

    def sample(self, numbers: Tensor, places: Tensor) -> Tensor:
        """Pictures at some places, by bicubic interpolation (a = -0.75), edges repeated.

        Args:
            numbers: (M, t, P, Q) latent frames.
            places: (M, t, P, Q, 2) float32 (x, y) pixels.

        Returns:
            (M, t, C, P, Q).
        """
        count, times, rows, columns = numbers.shape
        height = self._pictures.shape[2]
        grid = places.clone()
        x, y = grid.unbind(-1)
        # from pixels to what spans all pictures, one below the other, from -1 to 1
        x.mul_(2 / self._width).add_(1 / self._width - 1)
        y.clamp_(0, self._height - 1).add_(numbers % self._count, alpha=self._stride)
        y.mul_(2 / height).add_((2 * _MARGIN + 1) / height - 1)
        sampled = F.grid_sample(
            self._pictures,
            grid.view(1, -1, columns, 2),
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        return sampled[0].view(-1, count, times, rows, columns).permute(1, 2, 0, 3, 4)


class _Judged(NamedTuple):
    """Patches that may have moved.

    Attributes:
        patches: where they would come from.
        sampled: (M, 3, P, Q) the middle pixel frame from there, in grey levels.
        change: (M,) in units of the tolerance, infinite where nothing may be taken.
        stale: (M,) in grey levels.
        motion: (M, 2) pixels.
    """

    patches: Moved
    sampled: Tensor
    change: Tensor
    stale: Tensor
    motion: Tensor


class SparseVideo:
    """Motion of one video of a stream."""

    def __init__(self, motion: str, tolerance: float, like: Tensor, shape: tuple[int, ...]) -> None:
        frames, height, width = shape
        self._motion, self._flow, self._tolerance = motion, OpticalFlow(motion), tolerance
        self.sides = height, width
        self._patch = like.shape[-2] // height, like.shape[-1] // width
        self._snapshots = Snapshots(like, LONGEST + frames + 1)
        device = like.device
        y, x = (torch.arange(n, dtype=torch.float32, device=device) for n in like.shape[-2:])
        self._here = torch.stack(torch.broadcast_tensors(x, y.unsqueeze(1)), -1).contiguous()
        self._own = torch.arange(height * width, device=device)
        self.longest = longest_moves(height, width).to(device)
        self.trace: Trace | None = None
        self.number = 1

    def start(self, picture: Tensor, number: int) -> None:
        """Everything is at its place, and looks like (3, H, W), in grey levels.

        Args:
            picture: the source of what is shown.
            number: the latent frame that shows it.
        """
        self.trace = Trace.still(picture, self._here, self._own, number)

    def remember(self) -> None:
        """A block comes: keep a snapshot of the latent frame before it."""
        assert self.trace is not None
        self._snapshots.put(self.number - 1, self.trace.picture)

    def follow(
        self, change: Tensor, pixels: Tensor, noise: Tensor, limit: float, orders: Tensor
    ) -> tuple[list[Frame], Trace]:
        """Go through a block, frame by frame.

        Args:
            change: (S, S, N) see `VisibleChange`.
            pixels: (S, t, 3, H, W) in [0, 1].
            noise: () variance of a pixel.
            limit: of change.
            orders: (S, N) uint8, see ``traces``.

        Returns:
            what became of each latent frame, and the trace of the last one.
        """
        assert self.trace is not None
        trace, at, found = self.trace, change[0], list[Frame]()
        for t, now in enumerate((pixels.float() * 255).unbind(0)):
            still = at[t].masked_fill(~trace.placed, torch.inf)
            number = self.number + t
            frame, sampled = self._frame(trace, number, now, (still, noise, limit, orders[t]))
            trace = self._after(trace, number, now[middle(len(now))], frame, sampled)
            self._snapshots.put(number, trace.picture)
            found.append(frame)
            if t + 1 < len(change):
                at = torch.where(frame.keep, change[t + 1], at)
        return found, trace

    def _frame(
        self,
        trace: Trace,
        number: int,
        now: Tensor,
        given: tuple[Tensor, Tensor, float, Tensor],
    ) -> tuple[Frame, Tensor]:
        """What becomes of a latent frame, and the pictures of what moved."""
        still, noise, limit, orders = given
        differs = still > limit
        asked = differs & (orders != COMPUTE) & (orders != STAY)
        judged = self._judged(trace, number, now, noise, asked.nonzero().squeeze(1))
        index = judged.patches.index
        change = torch.full_like(still, torch.inf).index_copy(0, index, judged.change)
        keep = (orders == COMPUTE) | ((orders == DECIDE) & asked & (change > limit))
        keep |= (orders == STAY) & differs
        held = ~keep & ~(differs & (change < still))
        held &= still.isfinite()
        moved = ~keep & ~held & change.isfinite()
        stale = torch.zeros_like(still).index_copy(0, index, judged.stale)
        motion = still.new_zeros(len(still), 2).index_copy(0, index, judged.motion)
        stuck = ~(keep | held | moved)
        if bool(stuck.any()):
            far = (now.mean(0) - trace.picture).square().mean(0)
            far = F.avg_pool2d(far.unsqueeze(0), self._patch).flatten().sqrt()
            stale = torch.where(stuck, far, stale)
        which = moved[index]
        patches = judged.patches.chosen(which)
        origin = self._own.index_copy(0, patches.index, self._origin(trace, patches, motion))
        motion = motion * moved.unsqueeze(1)
        frame = Frame(keep, held, moved, change, stale, motion, origin, patches)
        return frame, judged.sampled[which]

    def _judged(
        self, trace: Trace, number: int, now: Tensor, noise: Tensor, index: Tensor
    ) -> _Judged:
        """Follow some patches to where they came from, and compare."""
        if not len(index):
            none = self._here.new_zeros(0)
            nowhere = self._here.new_zeros(0, len(now), *self._patch, 2)
            patches = Moved(index, nowhere[..., 0].int(), nowhere)
            return _Judged(patches, none.view(0, 3, 1, 1), none, none, none.view(0, 2))
        flow = self._flow_around(luma(now), luma(trace.picture), index)
        patches, lost = self._traced(trace, number, flow, index)
        sampled = self._snapshots.sample(patches.numbers, patches.places)
        residual = self._cut(now, index) - sampled
        mean = residual.mean(1)
        spread = [scale * noise.view(1, 1, 1, 1) for scale in NOISE]
        change = difference(
            mean.unsqueeze(0), cells_of(residual, self._patch).unsqueeze(0), spread, self._patch,
            self._tolerance,
        ).flatten()  # fmt: skip
        stale = mean.square().mean((1, 2, 3)).sqrt()
        rows, columns = (size // 2 for size in self._patch)
        at = middle(len(now))
        tall, wide = self._patch
        motion = flow[at, rows::tall, columns::wide].flatten(0, 1)[index]
        change = change.masked_fill(lost, torch.inf)
        return _Judged(patches, sampled[:, at], change, stale, motion)

    def _flow_around(self, now: Tensor, before: Tensor, index: Tensor) -> Tensor:
        """Flow (t, H, W, 2) at some patches; on a CPU 0 far from all of them."""
        if self._motion == "global" or now.is_cuda:
            return self._flow(now, before)
        box = []
        for places, count, size in zip(
            (index // self.sides[1], index % self.sides[1]), self.sides, self._patch, strict=True
        ):
            low, high = (int(x) for x in places.aminmax())
            box.append(slice(max(low - _AROUND, 0) * size, min(high + 1 + _AROUND, count) * size))
        flow = now.new_zeros(*now.shape, 2, dtype=torch.float32)
        flow[:, box[0], box[1]] = self._flow(now[:, box[0], box[1]], before[box[0], box[1]])
        return flow

    def _cut(self, x: Tensor, index: Tensor) -> Tensor:
        """Some patches (M, t, C, P, Q) of (t, C, H, W)."""
        (height, width), (tall, wide) = self.sides, self._patch
        patches = x.unflatten(3, (width, wide)).unflatten(2, (height, tall))
        return patches.permute(2, 4, 0, 1, 3, 5)[index // width, index % width]

    def _traced(
        self, trace: Trace, number: int, flow: Tensor, index: Tensor
    ) -> tuple[Moved, Tensor]:
        """Where patches are shown first-hand, and which of them are not to be taken (M,)."""
        moved = self._cut((self._here + flow).movedim(-1, 1), index).movedim(2, -1)
        last = self._here[-1, -1]  # pixel
        near = torch.minimum(moved.round().clamp_(min=0), last)
        row = torch.add(near[..., 0], near[..., 1], alpha=self._here.shape[1]).long().flatten()
        numbers = trace.numbers.flatten()[row].view(near.shape[:-1])
        places = trace.places.flatten(0, 1)[row].view(near.shape) + (moved - near)
        outside = self._outside(moved) | self._outside(places)
        old = number - numbers.flatten(1).amin(1) > self.longest[index]
        return Moved(index, numbers, places), outside | old | _scaled(numbers, places)

    def _outside(self, places: Tensor) -> Tensor:
        """(M,) bool, patches of which a pixel (M, ..., 2) lies too far beyond an edge."""
        low, high = places.flatten(1, -2).aminmax(dim=1)
        last = self._here[-1, -1]
        return ((low < -BEYOND) | (high > last + BEYOND)).any(1)

    def _origin(self, trace: Trace, patches: Moved, motion: Tensor) -> Tensor:
        """The token that each patch was in the latent frame before, (M,) of places.

        Tokens move by whole places. Which of those nearby is the one is told by where its content
        was computed: so steps that are small against a token add up.
        """
        (height, width), (tall, wide) = self.sides, self._patch
        numbers, wanted = (x[:, 0, 0] for x in patches.centres(1))
        y, x = patches.index // width, patches.index % width
        here = torch.stack([x, y], 1) + motion[patches.index] / motion.new_tensor([wide, tall])
        steps = torch.arange(-REACH, REACH + 1, device=here.device)
        around = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
        near = here.round().long().unsqueeze(1) + around
        last = near.new_tensor([width - 1, height - 1])
        near = torch.minimum(near.clamp(min=0), last)
        token = near[..., 1] * width + near[..., 0]
        was = trace.tokens[token]
        was = torch.stack([was % width, was // width], -1)
        same = trace.frames[token] == numbers.unsqueeze(1)
        # nearest to where it came from, among those that are as good
        far = torch.where(
            same,
            (was - wanted.unsqueeze(1)).square().sum(-1),
            ELSEWHERE + (near - here.unsqueeze(1)).square().sum(-1),
        )
        return token.gather(1, far.argmin(1, keepdim=True)).squeeze(1)

    def _after(
        self, trace: Trace, number: int, now: Tensor, frame: Frame, sampled: Tensor
    ) -> Trace:
        """What is known after a latent frame, ``now`` (3, H, W) its middle pixel frame."""
        computed = self.pixels_of(frame.keep)
        picture = torch.where(computed, now, trace.picture)
        numbers, places = torch.full_like(trace.numbers, number), self._here
        frames = torch.where(frame.moved, trace.frames[frame.origin], number)
        tokens = torch.where(frame.moved, trace.tokens[frame.origin], self._own)
        patches = frame.patches
        if len(patches.index):
            at = slice(middle(patches.numbers.shape[1]), middle(patches.numbers.shape[1]) + 1)
            came = patches.places[:, at].movedim(-1, 2), patches.numbers[:, at].unsqueeze(2)
            for_pixels = torch.cat([sampled.unsqueeze(1), *came], 2)
            known = torch.cat([picture, places.movedim(-1, 0), numbers.unsqueeze(0)])
            known = pasted(known.unsqueeze(0), self.sides, patches.index, for_pixels)[0]
            picture, places = known[:3], known[3:5].movedim(0, -1).contiguous()
            numbers = known[5].int()
        placed = frame.keep | frame.held
        return Trace(numbers, places, picture, placed, frames, tokens)

    def pixels_of(self, places: Tensor) -> Tensor:
        """(N,) or (h, w) of places as (H, W) of pixels."""
        return enlarged(places.view(self.sides), self._patch)


def pasted(pictures: Tensor, sides: Sequence[int], index: Tensor, patches: Tensor) -> Tensor:
    """Pictures with other patches at some places.

    Args:
        pictures: (t, C, H, W).
        sides: h, w patches of them.
        index: (M,) int64 places.
        patches: (M, t, C, P, Q).

    Returns:
        (t, C, H, W).
    """
    patches_in = cut(pictures, sides).contiguous()
    patches_in.index_copy_(0, index, patches.to(patches_in.dtype))
    joined = patches_in.unflatten(0, (sides[0], sides[1])).permute(2, 3, 0, 4, 1, 5)
    return joined.reshape(pictures.shape)


def cut(pictures: Tensor, sides: Sequence[int]) -> Tensor:
    """Pictures (t, C, H, W) in h x w patches, (N, t, C, P, Q)."""
    by_patch = pictures.unflatten(3, (sides[1], -1)).unflatten(2, (sides[0], -1))
    return by_patch.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)


def _scaled(numbers: Tensor, places: Tensor) -> Tensor:
    """(M,) bool, patches that grew or shrank too much since they were computed."""
    last, whole = places[:, -1], numbers[:, -1]
    lost = torch.zeros(len(places), dtype=torch.bool, device=places.device)
    middles = [size // 2 for size in whole.shape[1:]]
    for ends in (
        [(middles[0], 0), (middles[0], -1)],
        [(0, middles[1]), (-1, middles[1])],
    ):
        (a, b), (c, d) = ends
        length = (last[:, c, d] - last[:, a, b]).norm(dim=-1)
        scale = length / (whole.shape[1 if b == d else 2] - 1)
        same = whole[:, a, b] == whole[:, c, d]
        lost |= same & ((scale < SCALES[0]) | (scale > SCALES[1]))
    return lost
