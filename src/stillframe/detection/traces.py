"""What is known of where pixels, patches and tokens came from; see ``motion``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillframe.tokens.turns import places_in_turn

__all__ = [
    "BEYOND",
    "COMPUTE",
    "DECIDE",
    "ELSEWHERE",
    "LONGEST",
    "NOISE",
    "REACH",
    "REUSE",
    "SCALES",
    "STAY",
    "Frame",
    "Moved",
    "Trace",
    "longest_moves",
    "middle",
]

#: What is to become of a patch: it is not computed, whatever it looks like; it is; it is if it
#: looks like nothing that could stand for it; or if it is not like what was at its own place.
#: Kernels know the numbers.
REUSE, COMPUTE, DECIDE, STAY = 0, 1, 2, 3
#: Latent frames that a patch may be moved for, at most.
LONGEST = 20
#: Pixels beyond an edge, where it is repeated.
BEYOND = 4.0
#: Of a patch, since it was computed.
SCALES = 0.8, 1.25
#: Variance of the residual of a mean of four frames and of one frame, in that of a pixel: what is
#: sampled has its noise, too.
NOISE = 1.25, 2.0
#: Tokens around where a token came from, among which the one that it was is looked for.
REACH = 1
#: Distance, in tokens, of those that come from another snapshot.
ELSEWHERE = 64.0


def middle(frames: int) -> int:
    """Which pixel frame of a latent frame is its snapshot.

    A decoder draws edges a little behind or before where the source has them, by another tenth of a
    pixel in every pixel frame; in the middle one it is nearest to the others.
    """
    return frames // 2


def longest_moves(height: int, width: int) -> Tensor:
    """Latent frames that each patch of (h, w) may be moved for, (N,) int64."""
    half = LONGEST // 2
    return half + places_in_turn(height, width, half + 1)


class Moved(NamedTuple):
    """Patches of a latent frame that are reused from where they came from.

    On a GPU it is not waited for how many there are: all patches are there, with a mask.

    Attributes:
        index: (M,) int64 their places, in order.
        numbers: (M, t, P, Q) int32 latent frame of the snapshot that shows each pixel of each pixel
            frame.
        places: (M, t, P, Q, 2) float32 where it does, (x, y).
        mask: (M,) bool, which of them are reused; the others mean nothing. None: all are.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    numbers: Tensor
    places: Tensor
    mask: Tensor | None = None

    def chosen(self, which: Tensor) -> Moved:
        """Some of them, by a mask (M,)."""
        return Moved(self.index[which], self.numbers[which], self.places[which])

    def centres(self, count: int) -> tuple[Tensor, Tensor]:
        """Where squares of the patches came from, as of the middle pixel frame.

        Args:
            count: squares along a side.

        Returns:
            latent frame (M, count, count), and place in units of a square, float32 (M, count,
            count, 2).
        """
        at = middle(self.numbers.shape[1])
        sides = [size // count for size in self.numbers.shape[2:]]
        rows, columns = (slice(side // 2, None, side) for side in sides)
        places = self.places[:, at, rows, columns]
        centre, size = (places.new_tensor(x[::-1]) for x in ([side // 2 for side in sides], sides))
        return self.numbers[:, at, rows, columns], (places - centre) / size


class Trace(NamedTuple):
    """What is known of the pixels and tokens of a latent frame.

    Attributes:
        numbers: (H, W) int32 latent frame of the snapshot that shows each pixel first-hand.
        places: (H, W, 2) float32 where it does, (x, y).
        picture: (3, H, W) the source as snapshots make it up, in grey levels.
        placed: (N,) bool, tokens that are anchored at their place.
        frames, tokens: (N,) int64 latent frame and place of the token that each one's is.
    """

    numbers: Tensor
    places: Tensor
    picture: Tensor
    placed: Tensor
    frames: Tensor
    tokens: Tensor

    @classmethod
    def still(cls, picture: Tensor, here: Tensor, own: Tensor, number: int) -> Trace:
        """Everything is at its place in a latent frame.

        Args:
            picture: (3, H, W).
            here: (H, W, 2) float32 places of pixels.
            own: (N,) int64 places of tokens.
            number: of the latent frame.
        """
        numbers = torch.full_like(here[..., 0], number, dtype=torch.int32)
        held = torch.ones_like(own, dtype=torch.bool)
        return cls(numbers, here, picture, held, torch.full_like(own, number), own)


class Frame(NamedTuple):
    """What became of a latent frame's patches, see `motion.Settled`.

    Attributes:
        keep, held, moved: (N,) bool: computed, reused at its place, from elsewhere.
        change: (N,) from where it came from, in units of the tolerance, infinite where that is
            nowhere.
        stale: (N,) grey levels.
        motion: (N, 2) pixels.
        origin: (N,) places.
        patches: those that moved.
    """

    keep: Tensor
    held: Tensor
    moved: Tensor
    change: Tensor
    stale: Tensor
    motion: Tensor
    origin: Tensor
    patches: Moved
