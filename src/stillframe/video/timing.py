"""Presentation times: repaired on the way in, put on a container's grid on the way out.

Pure arithmetic on integer ticks and `Fraction` time bases; knows no files and no codecs.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction

__all__ = ["LEAST_FPS", "DecodingOrder", "InputClock", "OutputClock"]

#: Frames a second of the slowest video: one in an hour.
LEAST_FPS = 1 / 3600
# No codec reorders more.
_MOST_REORDERED = 64
# A clock that jumps back by more steps than this starts again; by fewer, it may be a slip.
_SLIP_STEPS = 2


class InputClock:
    """Strictly increasing presentation times from those of a file, which may lack or repeat some.

    Sound times pass, counted from `start`. A missing one continues the frame rate. One that does
    not increase becomes the next tick, if it is a slip: by two frames at most, and alone. Otherwise
    it is a restart: it and all after it move behind what came before, at the last rate.

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
        self._last_step = self._step
        self._shift = -start
        self.is_file_time = True
        self._lowest = lowest
        self._last: int | None = None
        self._has_slipped = False

    def __call__(self, pts: int | None) -> int:
        """The repaired time of the next frame, whose file time is `pts` (None: not given)."""
        self.is_file_time = self.is_file_time and pts is not None
        if self._last is None:
            now = 0 if pts is None else pts + self._shift
            now = now if self._lowest is None else max(now, self._lowest)
        elif pts is None:
            now = self._last + self._step
        else:
            now = self._follow(self._last, pts)
        self._last = now
        return now

    def _follow(self, last: int, pts: int) -> int:
        now = pts + self._shift
        if now > last:
            if not self._has_slipped and now - last <= self._second:
                self._last_step = now - last
            self._has_slipped = False
            return now
        if last - now <= _SLIP_STEPS * self._last_step and not self._has_slipped:
            self._has_slipped = True
            return last + 1
        self._shift += last + self._last_step - now
        self.is_file_time = self._has_slipped = False
        return last + self._last_step


class DecodingOrder:
    """Times of pictures that a file has in the order of decoding only, in that of presentation.

    Whatever is decoded first, the first picture is shown at the first time, and so on. What decodes
    to no picture takes no time; that is found out at the next keyframe.
    """

    def __init__(self) -> None:
        self._times: deque[tuple[int, bool]] = deque(maxlen=_MOST_REORDERED)

    def decode(self, dts: int, is_keyframe: bool) -> None:
        """A packet is about to be decoded."""
        self._times.append((dts, is_keyframe))

    def fail(self) -> None:
        """The last packet did not decode."""
        if self._times:
            self._times.pop()

    def show(self, is_keyframe: bool) -> int | None:
        """The time of the next picture, None if nothing is known of it."""
        if is_keyframe and any(is_key for _, is_key in self._times):
            while not self._times[0][1]:
                self._times.popleft()
        return self._times.popleft()[0] if self._times else None


class OutputClock:
    """Ticks of one time base on the grid of another, strictly increasing.

    Exact where `grid` divides `time_base`; rounded to the nearest free tick otherwise.

    Args:
        time_base: seconds per tick of the times given.
        grid: seconds per tick of the times returned.
        least: ticks of `grid` from one time to the next; what comes sooner is to be left out.
    """

    def __init__(self, time_base: Fraction, grid: Fraction, least: int = 1) -> None:
        self.grid = grid
        self._ratio = time_base / grid
        self._least = least
        self._last_given: int | None = None
        self._last: int | None = None

    def __call__(self, pts: int) -> int | None:
        """`pts`, in ticks of `time_base` -> ticks of `grid`, None if it comes too soon.

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
        tick = round(pts * self._ratio)
        if self._last is not None and tick < self._last + self._least:
            if self._least > 1:
                return None
            tick = self._last + 1
        self._last = tick
        return tick

    def ticks(self, duration: int) -> int:
        """A duration in ticks of `time_base` -> of `grid`, the least at least."""
        return max(self._least, round(duration * self._ratio))
