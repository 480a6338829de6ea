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
`LONGEST` latent frames, down to half as many by its place, and what grew or shrank by a fourth. Of
blocks in a row of which much moved, every twelfth is computed whole.

With flow d from pixel x, q = x + d and r the pixel next to q, what is kept of a pixel is
X'(x) = X(r) + (q - r), see docs/method.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.detection.dense import DenseVideo
from stillframe.detection.pixels import VisibleChange
from stillframe.detection.sparse import SparseVideo
from stillframe.detection.traces import (
    COMPUTE,
    DECIDE,
    REUSE,
    STAY,
    Frame,
    Moved,
    Trace,
    longest_moves,
    middle,
)
from stillframe.kernels import moving
from stillframe.kernels.shared import Find, own_workplaces
from stillframe.tokens.grid import Plan, plan_tokens
from stillframe.tokens.source import SourceBlock

__all__ = ["Motion", "Settled"]

_LONG_AGO = -(2**20)  # number of a latent frame that nothing is taken from
# share of a block that has to move for the next one to be looked at; else it rests for so many,
# twice as many each time up to the most, unless so much more of one is computed
_WORTH, _REST, _LONGEST_REST, _MUCH_MORE = 0.15, 7, 63, 0.25
# blocks in a row of which so much moved, after which one is computed whole
_LASTING = 11


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
        find: the workplace, which may make CUDA graphs of the work that is done by kernels.
    """

    def __init__(self, motion: str, change: VisibleChange, find: Find | None = None) -> None:
        self._motion, self.change, self._find = motion, change, find or own_workplaces()
        self._rest, self._next_rest, self._kept_share = 0, _REST, 1.0
        self._limit = 1.0
        self._born: Tensor | None = None
        self._moving = torch.zeros(1, 1, dtype=torch.bool)
        self._lasting: Tensor | None = None
        self._videos: Sequence[SparseVideo | DenseVideo] = []
        self._block: SourceBlock | None = None
        self._changed: Tensor | None = None
        self._orders = torch.zeros(0)
        self._proposed: tuple[Tensor, list[tuple[list[Frame], Trace]]] | None = None

    def enter(self) -> None:
        """Find what is known of the stream's pictures; call it first in every turn."""
        for video in self._videos:
            if isinstance(video, DenseVideo):
                video.memory.enter()

    @property
    def due(self) -> bool:
        """Whether motion is to be looked for in the next block."""
        return self._rest == 0

    def rested(self, kept_share: float) -> None:
        """A block was made without looking for motion, and so much of it was computed."""
        self._rest = max(self._rest - 1, 0)
        if kept_share > self._kept_share + _MUCH_MORE:
            self._rest = 0

    def begin(self, block: SourceBlock, staying: Tensor | None = None) -> None:
        """Take the next block, of which not everything may have to be computed.

        Args:
            block: with pixels and anchors.
            staying: (B, h, w) bool, patches that nothing from elsewhere may stand for.
        """
        assert block.pixels is not None
        assert block.anchor is not None
        for video, anchor in zip(self._video(block), block.anchor, strict=True):
            if video.trace is None:
                # what the latent frame before computed shows in its middle is not known
                video.start(anchor[1].float() * 255, _LONG_AGO)
            video.remember()
        self._block, self._changed, self._proposed = block, None, None
        self._limit = block.leniency
        orders = torch.full_like(block.tokens[..., 0], DECIDE, dtype=torch.uint8)
        self._orders = orders
        if staying is not None:
            orders.masked_fill_(staying.flatten(1).unsqueeze(1), STAY)

    def _video(self, block: SourceBlock) -> Sequence[SparseVideo | DenseVideo]:
        """Every video of the batch."""
        if self._videos or block.pixels is None:
            return self._videos
        grid, change = block.grid, self.change
        shape = grid.frames, grid.height, grid.width
        pixels = block.pixels.unflatten(1, (grid.frames + 1, -1))[:, 1:]
        if moving.supported(pixels, *shape[1:]):
            longest = longest_moves(*shape[1:]).to(pixels.device)
            key = self._motion, change.limits, pixels.shape[1:], pixels.dtype, pixels.device, shape
            self._videos = [
                DenseVideo(
                    self._motion,
                    change.limits,
                    video,
                    longest,
                    shape,
                    self._find("motion", (number, *key)),
                )
                for number, video in enumerate(pixels)
            ]
        else:
            self._videos = [
                SparseVideo(self._motion, change.tolerance, video[0, 0].float(), shape)
                for video in pixels
            ]
        return self._videos

    def mask(self, limit: float) -> Tensor:
        """What must be computed, (B, S, h, w) bool: what changed by more than a limit wherever it
        came from."""
        self._limit = limit
        orders = self._decide()
        if self._lasted is not None:
            # what is computed leans on what is not: whole now and then, an edit does not drift
            orders.masked_fill_(self._lasted.unsqueeze(-1), COMPUTE)
        followed = self._followed(limit, orders)
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
        orders = self._orders.masked_fill(barred.flatten(2), REUSE)
        orders.masked_fill_(keep.flatten(2), COMPUTE)
        followed = self._followed(self._limit, orders)
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
        lasted = self._lasted
        self._note(settled, plan)
        # that nothing moved in a block that was due as a whole says nothing of the next one
        if keep.device.type == "cpu" and not (lasted is not None and bool(lasted.any())):
            moved = float(torch.stack([found.moved for found in settled]).float().mean())
            self._rest = 0 if moved >= _WORTH else self._next_rest
            longer = min(2 * self._next_rest + 1, _LONGEST_REST)
            self._next_rest = _REST if moved >= _WORTH else longer
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
        orders = self._orders.clone()
        if self._born is not None:
            age = self._videos[0].number - self._born
            due = (age > self._videos[0].longest) & self._moving
            orders[:, 0].masked_fill_(due, COMPUTE)
        return orders

    @property
    def _lasted(self) -> Tensor | None:
        """Videos, (B, 1) bool, of which much has moved for so long that all of a block is due."""
        return None if self._lasting is None else self._lasting >= _LASTING

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
        before = torch.zeros_like(self._born[:, :1]) if self._lasting is None else self._lasting
        self._lasting = torch.where(self._moving, before + 1, 0)

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
        self._block = self._proposed = self._born = self._lasting = None
        return torch.stack(rows) if rows else anchors

    def restart(self, block: SourceBlock) -> None:
        """A block was computed whole: everything is at its place."""
        for number, video in enumerate(self._video(block)):
            assert block.pixels is not None
            last = block.pixels[number].unflatten(0, (block.grid.frames + 1, -1))[-1]
            video.number += block.grid.frames
            video.start(last[middle(len(last))].float() * 255, video.number - 1)
        self._block = self._proposed = self._born = self._lasting = None

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
        self, video: SparseVideo | DenseVideo, frames: Sequence[Frame], trace: Trace
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
