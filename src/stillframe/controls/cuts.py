"""Scene cuts, found causally in the source latents.

A cut changes every place of the picture, and most of them much; motion, even of the whole camera,
leaves some of it alone. So what is watched is the geometric mean of the lower decile and the median
of the patches' distances to the frame before, against its own median and median absolute deviation
since the scene began. Two numbers a frame are read back from the device; everything else happens on
the host.

Where a latent frame stands for several pixel frames, a cut among those shows in two steps: a mixed
frame, then the new scene. Both belong to one cut. Two cuts within three latent frames are taken for
one, as are the beginning and the end of a flash. Dissolves are no cuts, and black bars over more
than a tenth of the picture hide them: those places do not change.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Order,
    RunningControl,
    SourceFacts,
    StreamFacts,
    register,
)
from stillframe.controls.given import Given
from stillframe.detection.latents import patch_distance
from stillframe.options import Option
from stillframe.untrusted.numbers import check_number

__all__ = ["CutDetector", "CutFinder", "Cuts", "CutsOfBlock", "GivenCuts", "RunningCuts"]

_QUANTILES = (0.1, 0.5)
_TIMELINE = Timeline()
_NORMAL_MAD = 1.4826  # standard deviations to a median absolute deviation, of a normal distribution


@register("cuts")
@dataclass(frozen=True)
class Cuts(Control):
    """When a frame begins a new scene.

    Its distance, the geometric mean of lower decile and median over the patches, must exceed all of

    Attributes:
        minimum: an absolute one, in standard deviations of the latents.
        ratio: so many times the median since the scene began.
        deviations: so many standard deviations, estimated from the median absolute deviation,
            above that median.
        window: latest frames that median and deviation are taken over.

    Raises:
        ValueError: for numbers out of range.
    """

    summary = "scene cuts make a block whole and forget what came before"
    options: ClassVar = {
        "cuts": Option(
            "bool", "Begin anew where a scene does.", default=False, group="What is recomputed",
            live=True,
        ),
        "cuts_by": Option(
            "str", "What finds scene cuts: latents, or, in files, TransNet V2.", default="latents",
            choices=("latents", "transnetv2"), group="What is recomputed",
        ),
    }  # fmt: skip
    unused: ClassVar = {"cuts": False, "cut_frames": []}
    makes_whole = True

    minimum: float = 0.3
    ratio: float = 1.5
    deviations: float = 3.0
    window: int = 24

    def __post_init__(self) -> None:
        if not self.minimum > 0 or not self.ratio >= 1 or not self.deviations >= 0:
            raise ValueError(
                "a cut needs a minimum above 0, a ratio of at least 1 and deviations of at least "
                f"0, got {self.minimum}, {self.ratio} and {self.deviations}"
            )
        if self.window < 1:
            raise ValueError(f"cuts are judged by 1 or more frames, got {self.window}")
        for name in ("minimum", "ratio", "deviations"):
            check_number(f"the {name} of a cut", getattr(self, name), 0, 10**9)
        check_number("the frames that cuts are judged by", self.window, 1, 10**6, whole=True)

    @classmethod
    def from_options(cls, given: Given) -> Cuts | GivenCuts | None:
        if not given["cuts"]:
            return None
        if given["cuts_by"] in (None, "latents"):
            return cls()
        return GivenCuts(given.reading("cuts_by").scenes())

    def start(self, facts: StreamFacts) -> RunningCuts:
        return RunningCuts(self, CutDetector(self), facts.timeline)

    @property
    def unpruned(self) -> Cuts:
        return self

    def limit(self, past: deque[float]) -> float:
        """What the next frame's distance must exceed, given those of its scene so far."""
        middle = median(past)
        deviation = _NORMAL_MAD * median(abs(x - middle) for x in past)
        return max(self.minimum, self.ratio * middle, middle + self.deviations * deviation)


class CutsOfBlock(NamedTuple):
    """What was found in a block.

    Attributes:
        begun: frames of the block, from 0, with which a scene begins.
        last: the last frame that still belongs to a transition, None if there is none: from it on,
            all frames of the block are of one scene.
    """

    begun: tuple[int, ...]
    last: int | None


class CutFinder(Protocol):
    """What finds the cuts of one stream."""

    def __call__(self, tokens: Tensor) -> CutsOfBlock:
        """Look at the next block's source, (B, S, N, P)."""
        ...


@dataclass(frozen=True)
class GivenCuts(Control):
    """Cuts that are known beforehand, as a file's are once another program has looked at it.

    Attributes:
        frames: of the source, from 0, with which a scene begins.
        clock: of the stream's frames.
    """

    name = Cuts.name
    makes_whole = True

    frames: tuple[int, ...]
    clock: Timeline = _TIMELINE

    def start(self, facts: StreamFacts) -> RunningCuts:
        return RunningCuts(self, _Announcer(self), facts.timeline)

    def fitted(self, source: SourceFacts) -> GivenCuts:
        return self if source.timeline is None else replace(self, clock=source.timeline)

    @property
    def unpruned(self) -> GivenCuts:
        return self


class RunningCuts(RunningControl[Cuts | GivenCuts]):
    """Makes blocks whole that a cut concerns, and forgets what came before.

    Args:
        control: what is asked for.
        find: what finds cuts.
        clock: of the stream's frames.

    Attributes:
        found: latent frames, from 0, with which a scene begins.
    """

    def __init__(self, control: Cuts | GivenCuts, find: CutFinder, clock: Timeline) -> None:
        super().__init__(control)
        self.found: list[int] = []
        self._find, self._clock = find, clock
        self._latent = 0
        self._forget_next = False

    @property
    def looks_at_latents(self) -> bool:
        return isinstance(self._find, CutDetector)

    def begin(self, block: ControlledBlock) -> Order:
        cuts = self._find(block.tokens)
        self.found += [self._latent + j for j in cuts.begun]
        self._latent += block.grid.frames
        forget = self._forget_next or cuts.last is not None
        # a block that holds the end of a scene must not become the next one's context
        self._forget_next = cuts.last is not None and cuts.last > 0
        return Order(forget, forget)

    def report(self) -> dict[str, Any]:
        """Asks also for pixel frames of the result with which a scene begins."""
        begun = [self._clock.output_frames(latent).start for latent in self.found]
        return {"cuts": True, "cut_frames": begun}


class _Announcer:
    """Given cuts, block after block."""

    def __init__(self, cuts: GivenCuts) -> None:
        self._frames, self._clock = frozenset(cuts.frames), cuts.clock
        self._latent = 0
        self._settling = False

    def __call__(self, tokens: Tensor) -> CutsOfBlock:
        begun: list[int] = []
        last: int | None = None
        for j in range(tokens.shape[1]):
            taken = self._clock.source_frames(self._latent)
            here = self._frames.intersection(taken)
            # within a latent frame, a cut mixes two scenes; and the encoder remembers the old one
            # for a latent frame more
            if here or self._settling:
                last = j
            if here:
                begun.append(j)
            self._settling = bool(here)
            self._latent += 1
        return CutsOfBlock(tuple(begun), last)


class _Row:
    """One video of the batch."""

    def __init__(self, cuts: Cuts) -> None:
        self._cuts = cuts
        self._past: deque[float] = deque(maxlen=cuts.window)
        self._just_cut = False

    def judge(self, distance: float) -> str:
        """Take the next frame: "cut", "settling" right after one, or ""."""
        if self._just_cut:
            self._just_cut = False
            if distance > self._cuts.minimum:
                return "settling"
        elif self._past and distance > self._cuts.limit(self._past):
            self._past.clear()
            self._just_cut = True
            return "cut"
        self._past.append(distance)
        return ""


class CutDetector:
    """Finds the cuts of one stream, block after block. A batch cuts where any of its videos does.

    Args:
        cuts: when.
    """

    def __init__(self, cuts: Cuts) -> None:
        self._cuts = cuts
        self._rows: list[_Row] = []
        self._before: Tensor | None = None

    def __call__(self, tokens: Tensor) -> CutsOfBlock:
        """Look at the next block's source, (B, S, N, P)."""
        first, before = self._before is None, self._before
        self._before = tokens[:, -1].clone()
        if before is None:
            before = tokens[:, 0]
            self._rows = [_Row(self._cuts) for _ in tokens]
        distances = _frame_distances(tokens, before)
        # a stream's first frame has none before it
        start = int(first)
        found = [
            [row.judge(x) for x in frames[start:]]
            for row, frames in zip(self._rows, distances, strict=True)
        ]
        verdicts = [(j, set(frame)) for j, frame in enumerate(zip(*found, strict=True), start)]
        begun = tuple(j for j, frame in verdicts if "cut" in frame)
        unsettled = [j for j, frame in verdicts if frame != {""}]
        return CutsOfBlock(begun, max(unsettled, default=None))


def _frame_distances(tokens: Tensor, before: Tensor) -> list[list[float]]:
    """Distance of every frame (B, S, N, P) to the one before it, whose first is (B, N, P)."""
    shifted = torch.cat([before.unsqueeze(1), tokens[:, :-1]], 1)
    distance = patch_distance(tokens, shifted, 0.0)
    ranks = (1 + int(q * (distance.shape[2] - 1)) for q in _QUANTILES)
    low, middle = (distance.kthvalue(rank, dim=2).values.double() for rank in ranks)
    return (low * middle).sqrt().tolist()
