"""What moved, as the codec of the source has it: motion vectors instead of, or beside, latents.

An encoder has searched every block of a picture for where it came from, and said so. That is a
change detector which costs nothing. What can be known from it, and what not:

- a block with a vector of any length has moved, or looked as if it had;
- a block with none has been coded anew. What it shows may be old or new: unknown, and so are intra
  frames, which are many in some files. The method decides there;
- a vector of length 0 says that the block looks most like what was there before. It does not say
  that it is the same: vectors come without the residual, so that a skipped block cannot be told
  from one that got brighter. Slow changes are therefore not seen at all by "codec"; "both" sees
  them.

Encoders look for what is cheap to code, not for what moved, and noise gives them reason enough for
a vector now and then. So a place counts as moved if half of it did, over the pixel frames of its
latent frame; or of the latent frame before, which the encoder still remembers. So do its
neighbours, into which its layers carry it. What is unknown counts where it could make that half. No
frame looks ahead, so a stream and a file get the same masks. Knows maps of blocks; not where
they are read (`stillframe.video.vectors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    RunningControl,
    SourceFacts,
    StreamFacts,
    register,
)
from stillframe.controls.given import Given
from stillframe.controls.masks import GivenMasks
from stillframe.controls.shapes import MotionMap, Painting, cell_edges
from stillframe.methods import Method
from stillframe.options import Option
from stillframe.tokens.grid import Grid
from stillframe.untrusted.numbers import check_number

__all__ = ["KINDS", "Agreement", "CodecDetector", "CodecTrack"]

#: What `CodecDetector.kind` may be.
KINDS = ("codec", "both")

_ROUNDING = 1e-6
_TIMELINE = Timeline()


@register("codec")
@dataclass(frozen=True)
class CodecDetector(Control):
    """Which patches changed, from the source's own motion vectors.

    Attributes:
        kind: "codec" has its masks replace the method's where it knows; "both" recomputes what
            either of them would.
        share: how much of a patch must have moved, over area and pixel frames, for it to count; 0:
            any part in any frame.
        spread: patches around a moved one that count as moved, too.
        extent: see `Region.extent`.
        clock: of the stream's frames.

    Raises:
        ValueError: for another kind, or numbers out of range.
    """

    summary = "what moved as the source's codec has it"
    # the first two are the method's own
    options: ClassVar = {
        "detector": Option(
            "str",
            "What shows that a patch changed: the source's pixels (default), latents as in "
            "the papers, the source's codec, or both pixels and codec.",
            choices=("pixels", "latent", "codec", "both"), group="What is recomputed",
        ),
    }  # fmt: skip
    unused: ClassVar = {"detector": None, "agreement": None}
    order = 20
    strict = True
    needs_motion = True

    kind: str = "both"
    share: float = 0.5
    spread: int = 1
    extent: tuple[float, float] = (1.0, 1.0)
    clock: Timeline = _TIMELINE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the codec is used alone or as one of 'both', got {self.kind!r}")
        if not 0 <= self.share < 1:
            raise ValueError(f"a share of a patch is in [0, 1), got {self.share}")
        if self.spread < 0:
            raise ValueError(f"motion spreads over 0 or more patches, got {self.spread}")
        check_number("the patches that motion spreads over", self.spread, 0, 10**4, whole=True)

    @classmethod
    def from_options(cls, given: Given) -> CodecDetector | None:
        kind = given["detector"]
        return cls(kind) if kind in KINDS else None

    def check(self, method: Method, controls: Controls) -> None:
        if not method.prunes:
            raise ValueError(
                f"method {method.name!r} computes everything: it cannot have another "
                "change detector"
            )
        if controls.find(GivenMasks) is not None:
            raise ValueError("given masks leave nothing to detect: give them or a detector")

    def fitted(self, source: SourceFacts) -> CodecDetector:
        return replace(self, extent=source.extent, clock=source.timeline or self.clock)

    def start(self, facts: StreamFacts) -> CodecTrack:
        return CodecTrack(self)


class Agreement(NamedTuple):
    """How the codec's masks compare with the method's, over blocks that were not whole.

    Attributes:
        known: share of tokens that the codec knows anything of.
        agreed: of those, share on which both say the same. None if there are none.
        precision: of what the codec recomputes, share that the method does, too; None if nothing.
        recall: of what the method recomputes, share that the codec does, too; None if nothing.
    """

    known: float
    agreed: float | None
    precision: float | None
    recall: float | None


class CodecTrack(RunningControl[CodecDetector]):
    """The detector of one stream. It gets the map of every `frame` before the frame is pushed."""

    def __init__(self, control: CodecDetector) -> None:
        super().__init__(control)
        self._latent = 0
        self._maps: dict[int, MotionMap | None] = {}
        self._added = 0
        # the latent frame before the block
        self._before: tuple[Tensor, Tensor] | None = None
        self._moved = self._unknown = torch.empty(0)
        # tokens: all, known, alike, recomputed by the codec, by the method, by both
        self._counts: Tensor | None = None

    def frame(self, motion: MotionMap | None) -> None:
        self._maps[self._added] = motion
        self._added += 1

    def begin(self, block: ControlledBlock) -> None:
        grid, clock = block.grid, self.control.clock
        first, self._latent = self._latent, self._latent + grid.frames
        moved, unknown = [], []
        for latent in range(first, self._latent):
            frames = clock.source_frames(latent)
            # beyond the end, an autoencoder is fed the last frame again, in which nothing moves
            maps = [self._maps[f] for f in frames if f < self._added]
            here = _on_grid(maps, grid, self.control)
            before = here if self._before is None else self._before
            moved.append(here[0] | before[0])
            unknown.append(here[1] | before[1])
            self._before = here
        last = clock.source_frames(self._latent - 1)
        self._maps = {f: m for f, m in self._maps.items() if f not in range(last.stop)}
        self._moved = _spread(torch.stack(moved), self.control.spread)
        self._unknown = torch.stack(unknown) & ~self._moved

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        moved, unknown = self._moved.to(keep.device), self._unknown.to(keep.device)
        self._count(keep, moved.expand_as(keep), unknown.expand_as(keep))
        return keep | moved if self.control.kind == "both" else (keep & unknown) | moved

    def _count(self, keep: Tensor, moved: Tensor, unknown: Tensor) -> None:
        known = ~unknown
        kinds = (
            torch.ones_like(keep), known, known & (keep == moved), moved, keep & known,
            keep & moved,
        )  # fmt: skip
        counts = torch.stack([kind.sum() for kind in kinds])
        self._counts = counts if self._counts is None else self._counts + counts

    @property
    def agreement(self) -> Agreement:
        """So far; waits for the device."""
        counts = [0] * 6 if self._counts is None else self._counts.tolist()
        every, known, alike, codec, method, both = counts

        def share(part: int, whole: int) -> float | None:
            return part / whole if whole else None

        return Agreement(
            share(known, every) or 0.0, share(alike, known), share(both, codec), share(both, method)
        )

    def report(self) -> dict[str, Any]:
        """Asks also for the agreement with the method; waits for the device."""
        return {"detector": self.control.kind, "agreement": self.agreement._asdict()}


def _on_grid(
    maps: Sequence[MotionMap | None], grid: Grid, detector: CodecDetector
) -> tuple[Tensor, Tensor]:
    """Patches (h, w) that moved over the maps, and those that may have."""
    columns = cell_edges(grid.width, detector.extent[0])
    rows = cell_edges(grid.height, detector.extent[1])
    moved = torch.zeros(grid.height, grid.width, dtype=torch.float64)
    unknown = moved.clone()
    for motion in maps:
        if motion is None:
            unknown += 1
            continue
        for into, cells in ((moved, motion.moved), (unknown, motion.unknown)):
            if cells.any():
                into += Painting(torch.from_numpy(cells), motion.extent).cover(rows, columns)
    least = detector.share * max(len(maps), 1) + _ROUNDING
    return moved > least, (moved + unknown > least) & (moved <= least)


def _spread(moved: Tensor, reach: int) -> Tensor:
    """Patches (S, h, w) with those around them."""
    size = 2 * reach + 1
    spread = F.max_pool2d(moved.float().unsqueeze(1), size, stride=1, padding=reach)
    return spread.squeeze(1) > 0.5
