"""Presentation times: repaired on the way in, put on a container's grid on the way out.

Pure arithmetic on integer ticks and `Fraction` time bases; knows no files and no codecs.
"""

from __future__ import annotations

from fractions import Fraction

__all__ = ["InputClock", "OutputClock"]


class InputClock:
    """Strictly increasing presentation times from those of a file, which may lack or repeat some.

    Sound times pass, counted from `start`. A missing one continues the frame rate. One that does
    not increase becomes the next tick. One that jumps back by more than a second is a restart: it
    and all after it move behind what came before.

    Args:
        time_base: seconds per tick.
        fps: frame rate with which gaps are filled.
        start: ticks at which the file begins; they become 0.
        lowest: the earliest time that the first may have; None if any.

    Attributes:
        is_file_time: whether times still are those of the file, counted from `start`.
    """

    def __init__(
        self, time_base: Fraction, fps: float, start: int = 0, lowest: int | None = 0
    ) -> None:
        self._step = max(1, round(1 / (Fraction(fps) * time_base)))
        self._second = max(1, round(1 / time_base))
        self._shift = -start
        self.is_file_time = True
        self._lowest = lowest
        self._last: int | None = None

    def __call__(self, pts: int | None) -> int:
        """The repaired time of the next frame, whose file time is `pts` (None: not given)."""
        if self._last is None:
            now = 0 if pts is None else pts + self._shift
            now = now if self._lowest is None else max(now, self._lowest)
        elif pts is None:
            now = self._last + self._step
        else:
            now = pts + self._shift
            if self._last - now > self._second:
                self._shift += self._last + self._step - now
                self.is_file_time = False
                now = self._last + self._step
            now = max(now, self._last + 1)
        self._last = now
        return now


class OutputClock:
    """Ticks of one time base on the grid of another, strictly increasing.

    Exact where `grid` divides `time_base`; rounded to the nearest free tick otherwise.
    """

    def __init__(self, time_base: Fraction, grid: Fraction) -> None:
        self.grid = grid
        self._ratio = time_base / grid
        self._last_given: int | None = None
        self._last = -1

    def __call__(self, pts: int) -> int:
        """`pts`, in ticks of `time_base` -> ticks of `grid`.

        Raises:
            ValueError: `pts` is negative or not greater than the one before.
        """
        if pts < 0:
            raise ValueError(f"presentation times start at 0 or later, and this one is {pts}")
        if self._last_given is not None and pts <= self._last_given:
            raise ValueError(
                f"presentation times must increase: {pts} does not follow {self._last_given}"
            )
        self._last_given = pts
        self._last = max(round(pts * self._ratio), self._last + 1)
        return self._last

    def ticks(self, duration: int) -> int:
        """A duration in ticks of `time_base` -> of `grid`, one at least."""
        return max(1, round(duration * self._ratio))
