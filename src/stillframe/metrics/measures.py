"""Numbers that compare edited video with edited video: likeness to a reference, where it is least,
and flicker.

Accumulators over 8-bit frames, fed as the frames come; they hold two or three frames and a few
sums, whatever the length."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["PeakSignalToNoise", "StaticFlicker", "WorstPatch"]

Pixels = NDArray[np.uint8]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601
_STILL_LEVELS = 2.0
_STILL_FRAMES = 3
_PATCH = 16  # pixels a side
_PER_LEVEL = 20  # bins of a grey level


class PeakSignalToNoise:
    """Likeness of two videos, in decibels; higher is closer.

    ``10 log10(255^2 / e)``, e being the mean squared difference over *all* pixels, channels and
    frames (not the mean of each frame's figure). From 0 (black against white) to infinity
    (identical). About 30 dB is a small and 40 dB an invisible difference.
    """

    def __init__(self) -> None:
        self._squares = 0
        self._numbers = 0

    def add(self, a: Pixels, b: Pixels) -> None:
        """Take a frame, or several, of either video: uint8, any equal shape.

        Raises:
            ValueError: if the shapes differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"frames of shapes {a.shape} and {b.shape} cannot be compared")
        difference = (a.astype(np.int32) - b).ravel()
        # exact integers, so that the sum depends neither on order nor on length
        self._squares += int(np.dot(difference.astype(np.int64), difference))
        self._numbers += difference.size

    @property
    def db(self) -> float | None:
        """Decibels; None before the first frame."""
        if not self._numbers:
            return None
        if not self._squares:
            return math.inf
        return 10 * math.log10(255**2 * self._numbers / self._squares)


class WorstPatch:
    """How far two videos are apart where they are furthest apart; lower is closer.

    The root mean square difference, in grey levels of 255, of every patch of 16x16 pixels of every
    frame, of which quantiles are told: a mean over a picture hides a torn sleeve. Pixels beyond the
    last whole patch do not count. Two edits that differ in nothing but the seed of the noise are
    the yardstick: nobody can tell them apart.

    Args:
        skip: frames at the start that are left out: those of a first block, which is always
            computed whole.
    """

    QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}  # noqa: RUF012

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._counts = np.zeros(255 * _PER_LEVEL + 1, np.int64)
        self._most = 0.0

    def add(self, a: Pixels, b: Pixels) -> None:
        """Take the next frame of either video, uint8 (H, W, 3).

        Raises:
            ValueError: if the shapes differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"frames of shapes {a.shape} and {b.shape} cannot be compared")
        if self._skip:
            self._skip -= 1
            return
        height, width = (side // _PATCH * _PATCH for side in a.shape[:2])
        square = (a[:height, :width].astype(np.float32) - b[:height, :width]) ** 2
        patches = square.reshape(height // _PATCH, _PATCH, width // _PATCH, _PATCH, 3)
        errors = np.sqrt(patches.mean((1, 3, 4), dtype=np.float64)).ravel()
        if errors.size:
            self._counts += np.bincount(
                (errors * _PER_LEVEL).astype(np.int64), minlength=len(self._counts)
            )
            self._most = max(self._most, float(errors.max()))

    @property
    def levels(self) -> dict[str, float] | None:
        """Quantiles (the upper ends of bins of a twentieth of a level) and ``max``, in grey levels;
        None before the first frame."""
        total = int(self._counts.sum())
        if not total:
            return None
        sums, found = self._counts.cumsum(), {}
        for name, share in self.QUANTILES.items():
            number = int((sums < share * total).sum())
            found[name] = min((number + 1) / _PER_LEVEL, self._most)
        return {**found, "max": self._most}


class StaticFlicker:
    """How much edited video moves where its source stands still; lower is steadier.

    A pixel is *still* at a frame if the grey level of its source changed by at most 2 of 255 in
    each of the last 3 steps from frame to frame. Flicker is the mean, over all still pixels of all
    frames, of the absolute change of the edited grey level from the frame before: from 0 (frozen)
    to 255 grey levels. The source's own flicker on the same pixels, its noise, is at most 2 by
    definition; a model that copies it cannot be steadier without pruning.

    Grey is BT.601 luma of 8-bit RGB, not rounded.

    Args:
        videos: how many edited videos are measured on the same still pixels.
    """

    def __init__(self, videos: int) -> None:
        self._sums = [0.0] * (videos + 1)
        self._still_pixels = 0
        self._pixels = 0
        self._before: list[NDArray[np.float32]] | None = None
        self._steady: NDArray[np.int16] | None = None

    def add(self, source: Pixels, *edited: Pixels) -> None:
        """Take the next frame of the source and of each edited video, uint8 (H, W, 3).

        Raises:
            ValueError: if it is not as many videos as announced, or the shapes differ.
        """
        if len(edited) + 1 != len(self._sums):
            raise ValueError(f"expected {len(self._sums) - 1} edited videos, got {len(edited)}")
        shapes = {frame.shape for frame in (source, *edited)}
        if len(shapes) != 1:
            raise ValueError(f"frames of shapes {sorted(shapes)} cannot be compared")
        grey = [frame.astype(np.float32) @ _LUMA for frame in (source, *edited)]
        if self._before is None or self._steady is None:
            self._steady = np.zeros(source.shape[:2], np.int16)
        else:
            steps = [np.abs(now - was) for now, was in zip(grey, self._before, strict=True)]
            self._steady = np.where(steps[0] <= _STILL_LEVELS, self._steady + 1, 0).astype(np.int16)
            np.minimum(self._steady, _STILL_FRAMES, out=self._steady)
            self._tally(steps, self._steady >= _STILL_FRAMES)
        self._before = grey

    def _tally(self, steps: list[NDArray[np.float32]], still: NDArray[np.bool_]) -> None:
        self._pixels += still.size
        self._still_pixels += int(still.sum())
        for i, step in enumerate(steps):
            self._sums[i] += float(step[still].sum(dtype=np.float64))

    @property
    def levels(self) -> tuple[float | None, ...]:
        """Flicker of each edited video, in grey levels; None if no pixel was ever still."""
        return tuple(self._mean(total) for total in self._sums[1:])

    @property
    def source_level(self) -> float | None:
        """Flicker of the source on the same pixels, 0 to 2 grey levels."""
        return self._mean(self._sums[0])

    @property
    def still_share(self) -> float | None:
        """Share of pixels that counted, 0 to 1, over all frames but the first; None before two."""
        return self._still_pixels / self._pixels if self._pixels else None

    def _mean(self, total: float) -> float | None:
        return total / self._still_pixels if self._still_pixels else None
