"""When edited frames are shown: at the source's own pace, as late as they have to be and no later.

Frames come out a block at a time, and blocks take now more, now less. Every frame is shown a
*delay* after its time, the same for all as long as it is enough. One that comes later than that
raises it; while there is more of it than is needed it wears off slowly. So it also follows a source
whose clock is a little faster or slower than ours. Pure arithmetic.
"""

from __future__ import annotations

__all__ = ["Playout"]

_WINDOW_S = 5.0
_MARGIN_S = 0.03
#: Seconds of delay that wear off in a second.
_SPEED_UP = 0.05


class Playout:
    """The delay of one output.

    Attributes:
        delay: seconds from a frame's time until it is shown; None before the first one.
    """

    def __init__(self) -> None:
        self.delay: float | None = None
        self._least = float("inf")
        self._begun = self._before = 0.0
        self._excess = 0.0

    def arrived(self, time: float, now: float) -> None:
        """A frame has come that is to be shown `delay` after `time`; both in seconds, one clock."""
        late = now - time
        if self.delay is None:
            self.delay, self._begun, self._before = late, now, now
        if late > self.delay:
            self.delay, self._excess = late, 0.0
            self._least, self._begun = float("inf"), now
        self._least = min(self._least, self.delay - late)

    def position(self, now: float) -> float:
        """The time of what is to be shown now; minus infinity before the first frame."""
        if self.delay is None:
            return float("-inf")
        if now - self._begun >= _WINDOW_S and self._least < float("inf"):
            self._excess = max(self._least - _MARGIN_S, 0.0)
            self._least, self._begun = float("inf"), now
        step = min(self._excess, _SPEED_UP * max(now - self._before, 0.0))
        self.delay -= step
        self._excess -= step
        # what was measured before, was measured against a longer delay
        self._least -= step
        self._before = now
        return now - self.delay
