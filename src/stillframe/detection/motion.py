"""Motion: a patch that is elsewhere now is reused from there, as long as the source agrees.

Beside the anchors of ``pixels``, which hold a place, a stream remembers *snapshots*: its source and
what it showed in the middle of each of the latest latent frames (`middle`). For every pixel it
knows which of them shows it first-hand and where, in fractions of a pixel. A patch that is computed
or held at its place is shown by the newest snapshot, at its own place; of one that moved, optical
flow tells where its pixels lay a latent frame ago, and they keep the snapshot and the place that
they had there. So pixels are sampled once, from what was computed, and nothing blurs with time.

Flow is not measured between frames of the source but from its frames to the picture that snapshots
make up (`Trace.picture`): what it misses in one latent frame it sees in the next one, so errors do
not add up.

A patch is reused from where it came from if its source, sampled the same way, looks like its source
now: the measures and limits of ``pixels``, and every pixel frame by its own displacement. What is
uncovered, enters the picture or changes while it moves is computed; so is what has been moved for
`LONGEST` latent frames, down to half as many by its place, and what grew or shrank by a fourth.

With flow d from pixel x, q = x + d and r the pixel next to q, what is kept of a pixel is
X'(x) = X(r) + (q - r), see docs/method.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.dense import DenseVideo
from stillframe.detection.flow import OpticalFlow, luma
from stillframe.detection.pixels import VisibleChange, cells_of, difference, enlarged
from stillframe.detection.traces import (
    BEYOND,
    COMPUTE,
    DECIDE,
    ELSEWHERE,
    LONGEST,
    NOISE,
    REACH,
    REUSE,
    SCALES,
    Frame,
    Moved,
    Trace,
    middle,
)
from stillframe.kernels import moving
from stillframe.tokens.grid import Plan, plan_tokens
from stillframe.tokens.source import SourceBlock
from stillframe.tokens.turns import places_in_turn

__all__ = ["LONGEST", "Motion", "Moved", "Settled", "Snapshots", "cut", "middle", "pasted"]

_MARGIN = 2  # rows around a snapshot, so that sampling does not reach into the next one
_LONG_AGO = -(2**20)  # number of a latent frame that nothing is taken from
# share of a block that has to move for the next one to be looked at; else it rests for so many,
# unless so much more of one is computed
_WORTH, _REST, _MUCH_MORE = 0.15, 7, 0.25
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


class Settled(NamedTuple):
    """What became of a block's patches.

    Attributes:
        moved: (S, h, w) bool, reused from elsewhere.
        stuck: (S, h, w) bool, neither computed nor like anything: what was shown there stays.
        origin: (S, N) int64, see `Plan.origin`.
        motion: (S, h, w, 2) float32 (x, y) pixels, from a patch to where it lay in the latent frame
            before; 0 where it did not move.
        stale: (S, h, w) float32 in grey levels where moved or stuck, see ``Anchors.advance``.
        patches: those that moved, of each latent frame.
        first: number of the first latent frame.
    """

    moved: Tensor
    stuck: Tensor
    origin: Tensor
    motion: Tensor
    stale: Tensor
    patches: tuple[Moved, ...]
    first: int

    @property
    def some_moved(self) -> bool:
        """Whether anything moved; true where that is not known without waiting for a device."""
        return any(len(patches.index) for patches in self.patches)


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


class _Video:
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
        self.longest = _longest(height, width).to(device)
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
        asked = (still > limit) & (orders != COMPUTE)
        judged = self._judged(trace, number, now, noise, asked.nonzero().squeeze(1))
        index = judged.patches.index
        change = torch.full_like(still, torch.inf).index_copy(0, index, judged.change)
        keep = (orders == COMPUTE) | ((orders == DECIDE) & asked & (change > limit))
        held = ~keep & ~((still > limit) & (change < still))
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


def _longest(height: int, width: int) -> Tensor:
    """Latent frames that each patch of (h, w) may be moved for, (N,) int64."""
    half = LONGEST // 2
    return half + places_in_turn(height, width, half + 1)


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


def _plan(keep: Tensor, followed: Sequence[tuple[list[Frame], Trace]]) -> Plan:
    """The plan of a block of which (B, S, N) are computed, and the others came from somewhere."""
    moved = any(len(frame.patches.index) for frames, _ in followed for frame in frames)
    if not moved:
        return plan_tokens(keep)
    origin = [torch.stack([frame.origin for frame in frames]) for frames, _ in followed]
    return plan_tokens(keep, torch.stack(origin))


class Motion:
    """Where the patches of a stream went. For every block that is `due`, `begin` and `settle`.

    On a CPU to look for motion takes a tenth of a block. So where little of a block has moved, it
    is not looked for in the next ones, unless much more changes of a sudden: `rested` tells.

    Args:
        motion: "full" or "global", see ``flow``.
        change: tells how patches changed at their places.
        graphs: whether to make CUDA graphs of the work, where it is done by kernels.
    """

    def __init__(self, motion: str, change: VisibleChange, graphs: bool = False) -> None:
        self._motion, self.change, self._graphs = motion, change, graphs
        self._rest, self._kept_share = 0, 1.0
        self._limit = 1.0
        self._born: Tensor | None = None
        self._moving = torch.zeros(1, 1, dtype=torch.bool)
        self._videos: Sequence[_Video | DenseVideo] = []
        self._block: SourceBlock | None = None
        self._changed: Tensor | None = None
        self._proposed: tuple[Tensor, list[tuple[list[Frame], Trace]]] | None = None

    @property
    def due(self) -> bool:
        """Whether motion is to be looked for in the next block."""
        return self._rest == 0

    def rested(self, kept_share: float) -> None:
        """A block was made without looking for motion, and so much of it was computed."""
        self._rest = max(self._rest - 1, 0)
        if kept_share > self._kept_share + _MUCH_MORE:
            self._rest = 0

    def begin(self, block: SourceBlock) -> None:
        """Take the next block, of which not everything may have to be computed."""
        assert block.pixels is not None
        assert block.anchor is not None
        for video, anchor in zip(self._video(block), block.anchor, strict=True):
            if video.trace is None:
                # what the latent frame before computed shows in its middle is not known
                video.start(anchor[1].float() * 255, _LONG_AGO)
            video.remember()
        self._block, self._changed, self._proposed = block, None, None
        self._limit = block.leniency

    def _video(self, block: SourceBlock) -> Sequence[_Video | DenseVideo]:
        """Every video of the batch."""
        if self._videos or block.pixels is None:
            return self._videos
        grid, change = block.grid, self.change
        shape = grid.frames, grid.height, grid.width
        pixels = block.pixels.unflatten(1, (grid.frames + 1, -1))[:, 1:]
        if moving.supported(pixels, *shape[1:]):
            longest = _longest(*shape[1:]).to(pixels.device)
            self._videos = [
                DenseVideo(self._motion, change.limits, video, longest, shape, self._graphs)
                for video in pixels
            ]
        else:
            self._videos = [
                _Video(self._motion, change.tolerance, video[0, 0].float(), shape)
                for video in pixels
            ]
        return self._videos

    def mask(self, limit: float) -> Tensor:
        """What must be computed, (B, S, h, w) bool: what changed by more than a limit wherever it
        came from."""
        self._limit = limit
        followed = self._followed(limit, self._decide())
        keep = torch.stack([torch.stack([x.keep for x in frames]) for frames, _ in followed])
        self._proposed = keep, followed
        return keep.unflatten(2, self._videos[0].sides)

    def score(self) -> Tensor:
        """Change of each patch from where it came from, (B, S, h, w) in units of the tolerance, if
        what a `mask` has is computed; infinite where it came from nowhere, or was not looked for
        since it is like its place."""
        followed = self._followed(1.0, self._decide())
        # snapshots, and on a GPU patches, are now those of what nobody may have asked for
        self._proposed = None
        found = torch.stack([torch.stack([x.change for x in frames]) for frames, _ in followed])
        return found.unflatten(2, self._videos[0].sides)

    def complete(self, keep: Tensor, barred: Tensor) -> Tensor:
        """A mask (B, S, h, w) with all that must be computed beside it.

        What others add to `mask` changes where its neighbours come from.

        Args:
            keep: what is computed in any case.
            barred: the same shape, what is not.
        """
        assert self._block is not None
        if self._proposed is not None and torch.equal(self._proposed[0], keep.flatten(2)):
            return keep
        orders = torch.where(barred, REUSE, DECIDE).masked_fill(keep, COMPUTE).to(torch.uint8)
        followed = self._followed(self._limit, orders.flatten(2))
        whole = torch.stack([torch.stack([x.keep for x in frames]) for frames, _ in followed])
        self._proposed = whole, followed
        return whole.view_as(keep)

    def moved(self, keep: Tensor) -> Tensor:
        """What is reused from elsewhere if these (B, S, h, w) are computed; of the same shape."""
        flat = keep.flatten(2)
        if self._proposed is None or not torch.equal(self._proposed[0], flat):
            self._proposed = flat, self._computed(flat)
        found = [torch.stack([x.moved for x in frames]) for frames, _ in self._proposed[1]]
        return torch.stack(found).view_as(keep)

    def settle(self, keep: Tensor) -> list[Settled]:
        """What becomes of the patches, one for each video, if these (B, S, N) are computed."""
        return self.planned(keep)[0]

    def planned(self, keep: Tensor) -> tuple[list[Settled], Plan]:
        """The same, and the plan of the block.

        Waits for the device once, for the plan, as long as what is computed is what `mask` said:
        whether it is, is known by then.
        """
        proposed, self._proposed = self._proposed, None
        if proposed is None:
            followed = self._computed(keep)
            plan = _plan(keep, followed)
        else:
            same = (proposed[0] == keep).all().to("cpu", non_blocking=True)
            followed = proposed[1]
            plan = _plan(keep, followed)
            if not same and not plan.everything:
                followed = self._computed(keep)
                plan = _plan(keep, followed)
        self._block = None
        settled = [
            self._settled(video, *found)
            for video, found in zip(self._videos, followed, strict=True)
        ]
        self._note(settled, plan)
        if keep.device.type == "cpu":
            moved = float(torch.stack([found.moved for found in settled]).float().mean())
            self._rest = 0 if moved >= _WORTH else _REST
            self._kept_share = float(keep.float().mean()) + moved
        return settled, plan

    def _computed(self, keep: Tensor) -> list[tuple[list[Frame], Trace]]:
        assert self._block is not None
        return self._followed(self._limit, keep.to(torch.uint8))

    def _decide(self) -> Tensor:
        """What is to become of patches, (B, S, N): to be decided, but for those that are due.

        Where much of a picture moves, what looks the same at its place is not the same, as of an
        even wall: it is computed again as often as what moved is, in the block's first frame.
        """
        assert self._block is not None
        orders = torch.full_like(self._block.tokens[..., 0], DECIDE, dtype=torch.uint8)
        if self._born is not None:
            age = self._videos[0].number - self._born
            due = (age > self._videos[0].longest) & self._moving
            orders[:, 0].masked_fill_(due, COMPUTE)
        return orders

    def _note(self, settled: Sequence[Settled], plan: Plan) -> None:
        """Keep when tokens were computed, and whether much moves."""
        first, count = settled[0].first, plan.keep.shape[2]
        # rows of `Plan.provider` in units of a latent frame: 0 is the one before the block
        frame = plan.provider[:, -count:] // count
        born = frame + (first - 1)
        if self._born is not None:
            before = self._born.gather(1, plan.provider[:, -count:].clamp(max=count - 1))
            born = torch.where(frame == 0, before, born)
        self._born = born
        moved = torch.stack([found.moved for found in settled])
        self._moving = moved.float().mean((1, 2, 3)).unsqueeze(1) >= _WORTH

    def release(self, anchors: Tensor) -> Tensor:
        """Anchor everything at its place as it is, and start anew.

        Args:
            anchors: (B, 2, 3, H, W), see ``pixels.Anchors``.

        Returns:
            those to go on with.
        """
        rows = []
        for video, anchor in zip(self._videos, anchors, strict=True):
            trace, video.trace = video.trace, None
            if trace is not None:
                away = video.pixels_of(~trace.placed)
                anchor = torch.where(away, trace.picture.to(anchor) / 255, anchor)
            rows.append(anchor)
        self._block = self._proposed = self._born = None
        return torch.stack(rows) if rows else anchors

    def restart(self, block: SourceBlock) -> None:
        """A block was computed whole: everything is at its place."""
        for number, video in enumerate(self._video(block)):
            assert block.pixels is not None
            last = block.pixels[number].unflatten(0, (block.grid.frames + 1, -1))[-1]
            video.number += block.grid.frames
            video.start(last[middle(len(last))].float() * 255, video.number - 1)
        self._block = self._proposed = self._born = None

    def changed(self) -> Tensor:
        """Change of the block's patches at their places, see `VisibleChange`; asked for once."""
        assert self._block is not None
        if self._changed is None:
            self._changed = self.change(self._block)
        return self._changed

    def _followed(self, limit: float, orders: Tensor) -> list[tuple[list[Frame], Trace]]:
        assert self._block is not None
        assert self._block.pixels is not None
        change, noise = self.changed().flatten(3), self.change.noise
        frames = self._block.grid.frames
        pixels = self._block.pixels.unflatten(1, (frames + 1, -1))[:, 1:]
        return [
            video.follow(change[b], pixels[b], noise[b], limit, orders[b])
            for b, video in enumerate(self._videos)
        ]

    def _settled(
        self, video: _Video | DenseVideo, frames: Sequence[Frame], trace: Trace
    ) -> Settled:
        """Keep what is known after a block."""
        stuck = [~(x.keep | x.held | x.moved) for x in frames]
        # what stays although it is not like its source is anchored from now on, as it is
        video.trace = trace._replace(placed=trace.placed | stuck[-1])
        first = video.number
        video.number += len(frames)
        sides = video.sides

        def grid(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(parts)).unflatten(1, sides)

        return Settled(
            grid([x.moved for x in frames]),
            grid(stuck),
            torch.stack([x.origin for x in frames]),
            grid([x.motion for x in frames]),
            grid([x.stale for x in frames]),
            tuple(x.patches for x in frames),
            first,
        )

    def anchored(self, settled: Sequence[Settled], anchors: Tensor) -> Tensor:
        """Anchors (B, 2, 3, H, W) with what stays although it is like nothing any more."""
        rows = []
        for video, found, anchor in zip(self._videos, settled, anchors, strict=True):
            assert video.trace is not None
            stays = video.pixels_of(found.stuck[-1])
            rows.append(torch.where(stays, video.trace.picture.to(anchor) / 255, anchor))
        return torch.stack(rows)
