"""Frames that a client sends: their timestamps made to rise, and those that cannot be used counted.

One unusable frame is no reason to end a session: networks and cameras lose things.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["RisingTimestamps", "UnusableFrames"]

_LATE = 5
"""Frames in a row that come late and rise among themselves: by then the clock was set back."""

_GAP = 60.0
"""Seconds; a longer leap forward is a damaged number, a clock that was set, or as good as one."""

_FAR = 2.0**40
"""Seconds; beyond it a float would not tell frames apart."""

_REMEMBERED = 4096

_NOTICE_SECONDS = 1.0


class RisingTimestamps:
    """Times for a client's timestamps. They are the same as long as the timestamps rise.

    A frame that is not later than the one before gets no time. If the clock was set back, that is
    so for a few frames; then times go on from where they were. One thread takes, others may look
    up.
    """

    def __init__(self) -> None:
        self._newest: float | None = None
        self._stamp = 0.0
        self._shift = 0.0
        self._late: list[float] = []
        self._stamps: dict[float, float] = {}

    def take(self, stamp: float) -> float:
        """The time of a frame's timestamp, both in seconds; later than all before.

        Raises:
            ValueError: the timestamp is not finite, or not later than the one before.
        """
        if not math.isfinite(stamp):
            raise ValueError(f"a timestamp is a finite number, got {stamp}")
        before, time = self._newest, stamp + self._shift
        if before is None:
            time = stamp if abs(stamp) < _FAR else 0.0
        elif time > before + _GAP:
            time = before + _GAP
        elif time <= before:
            time = before + self._set_back(stamp)
        self._late.clear()
        self._newest, self._stamp, self._shift = time, stamp, time - stamp
        if time != stamp:
            self._remember(time, stamp)
        return time

    def _set_back(self, stamp: float) -> float:
        """Seconds from the newest time to that of a late frame, if the clock was set back.

        Raises:
            ValueError: it is one late frame, or one of a few.
        """
        if self._late and stamp <= self._late[-1]:
            self._late.clear()
        self._late.append(stamp)
        if len(self._late) < _LATE:
            raise ValueError(f"timestamps must rise, got {stamp} after {self._stamp}")
        step = self._late[-1] - self._late[-2]
        return min(max(step, 0.001), _GAP)

    def _remember(self, time: float, stamp: float) -> None:
        self._stamps[time] = stamp
        if len(self._stamps) > _REMEMBERED:  # far more than wait to be edited and sent
            del self._stamps[next(iter(self._stamps))]

    def of(self, time: float) -> float:
        """The timestamp that a time was made from."""
        return self._stamps.get(time, time)


class UnusableFrames:
    """Counts a client's frames that were dropped because they cannot be used.

    Args:
        tell: called with a sentence and the count, with the first frame and then not more often
            than once a second.
        now: seconds since some moment in the past.

    Attributes:
        count: how many there were.
    """

    def __init__(
        self, tell: Callable[[str, int], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.count = 0
        self._tell, self._now = tell, now
        self._untold, self._next = 0, now()

    def add(self, why: str) -> None:
        """Count a frame, and the reason."""
        self.count += 1
        self._untold += 1
        if self._now() < self._next:
            return
        frames = "1 frame" if self._untold == 1 else f"{self._untold} frames"
        self._untold, self._next = 0, self._now() + _NOTICE_SECONDS
        self._tell(f"{frames} could not be used: {why}", self.count)
