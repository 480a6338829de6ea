"""Motion of a video on a GPU, by kernels: `motion` without waiting for what there is to do.

All patches of a latent frame are there, whether they moved or not, and everything from the source's
brightness to the verdicts is one CUDA graph a block. What `motion` does in torch is the reference;
it and this give the same verdicts.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.detection.flow import OpticalFlow
from stillframe.detection.pixels import enlarged
from stillframe.detection.traces import (
    BEYOND,
    ELSEWHERE,
    LONGEST,
    NOISE,
    SCALES,
    Frame,
    Moved,
    Trace,
)
from stillframe.kernels import moving
from stillframe.kernels.flow import searchable
from stillframe.kernels.shared import Memory, Workplace
from stillframe.kernels.snapshots import Ring
from stillframe.kernels.visible import Limits

__all__ = ["DenseVideo"]

_Followed = tuple[moving.Found, moving.Known]


class _Buffers(NamedTuple):
    """What graphs read and write.

    Attributes:
        ring: snapshots of the source.
        trace: what is known of the latest latent frame.
        given: what a block is judged from.
        numbers, places: see `moving.Found`.
        here, own: places of pixels and of tokens.
    """

    ring: Ring
    trace: Trace
    given: moving.Given
    numbers: Tensor
    places: Tensor
    here: Tensor
    own: Tensor

    @classmethod
    def like(cls, pixels: Tensor, longest: Tensor, frames: int, patch: tuple[int, int]) -> _Buffers:
        """For blocks of as many pixels (S, t, 3, H, W)."""
        like, device = pixels[0, 0], pixels.device
        y, x = (torch.arange(n, dtype=torch.float32, device=device) for n in like.shape[-2:])
        here = torch.stack(torch.broadcast_tensors(x, y.unsqueeze(1)), -1).contiguous()
        own = torch.arange(len(longest), device=device)
        blank = torch.zeros(like.shape, device=device)
        patches = frames, len(longest), pixels.shape[1], *patch
        given = moving.Given(
            torch.zeros(frames, frames, len(longest), device=device),
            torch.empty_like(pixels, memory_format=torch.contiguous_format),
            torch.zeros((), device=device),
            torch.zeros((), device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            longest,
            torch.zeros(frames, len(longest), dtype=torch.uint8, device=device),
        )
        return cls(
            Ring(like, LONGEST + frames + 1),
            Trace.still(blank, here.clone(), own.clone(), 0),
            given,
            torch.zeros(patches, dtype=torch.int32, device=device),
            torch.zeros(*patches, 2, device=device),
            here,
            own,
        )


class DenseVideo:
    """Motion of one video of a stream.

    Args:
        motion: see ``flow``.
        limits: by which patches are compared.
        pixels: (S, t, 3, H, W) of a block, for their size, format and device.
        longest: (h*w,) int64 latent frames that each patch may be moved for.
        shape: S, h, w.
        place: where the work is done, as a CUDA graph if it captures.

    Attributes:
        memory: what the stream leaves there.
    """

    def __init__(
        self,
        motion: str,
        limits: Limits,
        pixels: Tensor,
        longest: Tensor,
        shape: tuple[int, int, int],
        place: Workplace,
    ) -> None:
        frames, *sides = shape
        self._flow = OpticalFlow(motion)
        self._rules = moving.Rules(limits, BEYOND, SCALES, NOISE, ELSEWHERE)
        self.sides = sides[0], sides[1]
        like = pixels[0, 0]
        self._patch = like.shape[-2] // sides[0], like.shape[-1] // sides[1]
        # a flow that there are no kernels for is looked for on the CPU, which no graph can do
        self._graphs = place.graphs() if searchable(*like.shape[-2:]) else None
        self.memory, self._known = Memory(place), False
        self._buffers = place.once(
            "buffers", lambda: _Buffers.like(pixels, longest, frames, self._patch)
        )
        self._ring, self._trace, self._given = self._buffers[:3]
        self._here, self._own = self._buffers.here, self._buffers.own
        self.longest = self._given.longest
        place.keep("ring", self._ring.pictures)
        for name, x in zip(Trace._fields, self._trace, strict=True):
            place.keep(name, x)
        self.memory.enter()
        self.number = 1

    @property
    def trace(self) -> Trace | None:
        """What is known of the latest latent frame; None: nothing yet."""
        return self._trace if self._known else None

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._known = trace is not None
        for buffer, x in zip(self._trace, trace or (), strict=False):
            if x is not buffer:
                buffer.copy_(x)

    def start(self, picture: Tensor, number: int) -> None:
        """Everything is at its place, and looks like (3, H, W), in grey levels.

        Args:
            picture: the source of what is shown.
            number: the latent frame that shows it.
        """
        self.trace = Trace.still(picture, self._here, self._own, number)

    def remember(self) -> None:
        """A block comes: keep a snapshot of the latent frame before it."""
        self._given.number.fill_(self.number - 1)
        self._ring.put(self._given.number, self._trace.picture)

    def follow(
        self, change: Tensor, pixels: Tensor, noise: Tensor, limit: float, orders: Tensor
    ) -> tuple[list[Frame], Trace]:
        """Go through a block, see `motion.Motion`.

        Args:
            change: (S, S, N) see `pixels.VisibleChange`.
            pixels: (S, t, 3, H, W) in [0, 1].
            noise: () variance of a pixel.
            limit: of change.
            orders: (S, N) uint8, see ``traces``.

        Returns:
            what became of each latent frame, and the trace of the last one. Patches and trace are
            overwritten by the next call.
        """
        given = self._given
        given.change.copy_(change)
        given.pixels.copy_(pixels)
        given.noise.copy_(noise)
        given.limit.fill_(limit)
        given.number.fill_(self.number)
        given.orders.copy_(orders)
        found, known = self._run("follow", given)
        return self._frames(found), Trace(*known)

    def _run(self, key: Hashable, given: moving.Given) -> _Followed:
        if self._graphs is None:
            return self._followed(given)
        done: _Followed = self._graphs.run(key, lambda: self._followed(given))
        return done

    def _followed(self, given: moving.Given) -> _Followed:
        """The work, on tensors that never move."""
        frames, places = given.change.shape[1:]
        new = given.change.new_empty
        found = moving.Found(
            new(frames, 3, places, dtype=torch.bool),
            new(frames, 4, places),
            new(frames, places, dtype=torch.int64),
            self._buffers.numbers,
            self._buffers.places,
        )
        anchor = torch.zeros(places, dtype=torch.int32, device=given.change.device)
        light = moving.brightness(given.pixels.flatten(0, 1), 255).unflatten(0, (frames, -1))
        known = moving.Known(*self._trace)
        for t in range(frames):
            before = moving.brightness(known.picture.unsqueeze(0), 1)[0]
            flow = self._flow(light[t], before).contiguous()
            known = moving.follow(given, t, flow, known, anchor, self._ring, self._rules, found)
        return found, known

    def _frames(self, found: moving.Found) -> list[Frame]:
        """Found latent frame by latent frame; what is small, as its own."""
        verdict, measured, origin = (x.clone() for x in found[:3])
        frames = []
        for t, (keep, held, moved) in enumerate(verdict):
            change, stale = measured[t, :2]
            motion = measured[t, 2:].T
            patches = Moved(self._own, found.numbers[t], found.places[t], moved)
            frames.append(Frame(keep, held, moved, change, stale, motion, origin[t], patches))
        return frames

    def pixels_of(self, places: Tensor) -> Tensor:
        """(N,) or (h, w) of places as (H, W) of pixels."""
        return enlarged(places.view(self.sides), self._patch)
