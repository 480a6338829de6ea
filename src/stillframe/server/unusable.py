"""Frames of a client that cannot be used: they are dropped, counted, and told of.

One of them is no reason to end a session: networks and cameras lose things. It does not know how
frames are read, or where the client is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Unusable"]

_SECONDS = 1.0


class Unusable:
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
        self._untold, self._next = 0, self._now() + _SECONDS
        self._tell(f"{frames} could not be used: {why}", self.count)
