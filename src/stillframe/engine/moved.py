"""Pictures of what moved: from those that were shown, wherever they show its patches.

`Rings` makes for each block what puts them in, in torch or, where there are kernels, by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stillframe.detection.motion import Settled
from stillframe.detection.sparse import Snapshots, cut, pasted
from stillframe.detection.traces import LONGEST
from stillframe.kernels.shared import Memory
from stillframe.kernels.snapshots import Ring, show

__all__ = ["DenseMover", "DenseMoves", "MovedPictures", "Mover", "Rings", "SparseMover"]


class DenseMoves(NamedTuple):
    """What moved in a block, of all patches.

    Attributes:
        number: () int64 of the block's first latent frame.
        masks: (B, S, N) bool, which of them moved.
        even: (B, S, N) see `MovedPictures`.
        numbers, places: (B, S, N, ...) where they come from, see `Moved`.
    """

    number: Tensor
    masks: Tensor
    even: Tensor
    numbers: Tensor
    places: Tensor


class MovedPictures(NamedTuple):
    """What is not computed in a block and comes from elsewhere.

    Attributes:
        settled: of every video.
        even: of every video and latent frame, (M,) from 0, where pixels are moved, to 1, where the
            picture is what was decoded; see ``results.Results``.
    """

    settled: Sequence[Settled]
    even: Sequence[Sequence[Tensor]]

    @property
    def dense(self) -> bool:
        """Whether all patches are there, see `Moved`: then there are kernels for them."""
        return self.settled[0].patches[0].mask is not None

    @property
    def tensors(self) -> DenseMoves:
        """If all patches are there."""
        settled = self.settled
        masks = torch.stack([found.moved.flatten(1) for found in settled])
        even = torch.stack([torch.stack(list(even)) for even in self.even])
        numbers, places = (
            torch.stack([torch.stack([getattr(x, name) for x in y.patches]) for y in settled])
            for name in ("numbers", "places")
        )
        number = torch.full((), settled[0].first, device=masks.device)
        return DenseMoves(number, masks, even, numbers, places)


class Mover(Protocol):
    """Puts what moved into the pictures of a block."""

    def remember(self, t: int, pictures: Tensor) -> None:
        """Keep what a latent frame of the block showed, (B, 3, H, W); -1: the one before it."""

    def moved(self, shown: Tensor, new: Tensor, t: int) -> Tensor:
        """What stays in a latent frame, (B, n, 3, H, W).

        Args:
            shown: (B, 1, 3, H, W) the picture before.
            new: (B, n, 3, H, W) as decoded.
            t: which latent frame.
        """


class SparseMover:
    """Of patches that are picked out, in torch.

    Args:
        snapshots: of every video, of what was shown.
        pictures: what moved.
    """

    def __init__(self, snapshots: Sequence[Snapshots], pictures: MovedPictures) -> None:
        self._snapshots, self._pictures = snapshots, pictures

    def remember(self, t: int, pictures: Tensor) -> None:
        number = self._pictures.settled[0].first + t
        for snapshots, picture in zip(self._snapshots, pictures, strict=True):
            snapshots.put(number, picture.float())

    def moved(self, shown: Tensor, new: Tensor, t: int) -> Tensor:
        rows, stays = [], shown.expand_as(new)
        for b, (found, even) in enumerate(zip(*self._pictures, strict=True)):
            patches, weight = found.patches[t], even[t]
            if not len(patches.index):
                rows.append(stays[b])
                continue
            sides = found.moved.shape[1:]
            pictures = cut(new[b], sides)[patches.index]
            uneven = weight < 1
            some = patches.chosen(uneven)
            if len(some.index):
                sampled = self._snapshots[b].sample(some.numbers, some.places)[:, : new.shape[1]]
                share = weight[uneven].view(-1, 1, 1, 1, 1)
                # both are there, so that nothing jumps where one takes over from the other
                mixed = sampled.clamp(0, 1).lerp(pictures[uneven].float(), share)
                pictures[uneven] = mixed.to(pictures.dtype)
            rows.append(pasted(stays[b], sides, patches.index, pictures))
        return torch.stack(rows)


class DenseMover:
    """Of all patches, by kernels: without shapes that depend on what moved.

    Args:
        rings: of every video, of what was shown.
        moves: what moved.
    """

    def __init__(self, rings: Sequence[Ring], moves: DenseMoves) -> None:
        self._rings, self._moves = rings, moves

    def remember(self, t: int, pictures: Tensor) -> None:
        for ring, picture in zip(self._rings, pictures, strict=True):
            ring.put(self._moves.number + t, picture)

    def moved(self, shown: Tensor, new: Tensor, t: int) -> Tensor:
        rows = []
        for b, ring in enumerate(self._rings):
            _, masks, even, numbers, places = (x if not x.ndim else x[b, t] for x in self._moves)
            rows.append(show(shown[b, 0], new[b], ring, numbers, places, masks, even))
        return torch.stack(rows)


class Rings:
    """What was shown in the latest latent frames of a stream.

    Args:
        block_frames: latent frames of a block.
        memory: of the stream, where pictures for kernels lie; None: its own.
    """

    def __init__(self, block_frames: int, memory: Memory | None = None) -> None:
        self._count, self._memory = LONGEST + block_frames + 1, memory or Memory()
        self._snapshots: list[Snapshots] = []
        self._rings: list[Ring] = []

    def open(self, like: Tensor, dense: bool) -> None:
        """Make room for pictures (B, 3, H, W), if there is none."""
        if dense and not self._rings:
            place = self._memory.place
            self._rings = place.once("rings", lambda: [Ring(x, self._count) for x in like])
            for number, ring in enumerate(self._rings):
                place.keep(("ring", number), ring.pictures)
        if not dense and not self._snapshots:
            self._snapshots = [Snapshots(x.float(), self._count) for x in like]

    def sparse(self, pictures: MovedPictures, like: Tensor) -> SparseMover:
        """What puts patches in that are picked out; ``like``: (B, 3, H, W)."""
        self.open(like, dense=False)
        return SparseMover(self._snapshots, pictures)

    def dense(self, moves: DenseMoves, like: Tensor) -> DenseMover:
        """What puts in those of all patches that moved, see `DenseMover`."""
        self.open(like, dense=True)
        return DenseMover(self._rings, moves)
