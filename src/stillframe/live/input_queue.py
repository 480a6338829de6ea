"""Frames that wait to be edited: which of them stay, which go, and when a block can begin.

The drop rule of policy ``latest``, n being the frames that a block takes:

1. A frame that arrives always waits; at most 2n frames do. One more, and the frame goes whose two
   neighbours are closest to each other in time, never the newest.
2. A frame that came ``max_wait`` seconds before the newest goes if more than n wait.
3. A block begins when n frames wait and the model is free. Of all that wait it takes n, evenly
   spaced in time, the newest among them; the others are dropped. Nothing is left waiting.

So the frames of a block came after the block before had begun. From arrival to result they take at
most ``max(F, min(W, max_wait)) + C``, whatever the input rate: F is the time in which n frames
come, C that of the block, and W the time since the block before was begun, which is its own C and
other sessions' turns. (Frames that a decoder holds back come out a block later.)

Policy ``all`` takes frames in order, n at a time, and refuses what is above its bound.

Frames of another size, or after a cut, belong to another stream: ``all`` first finishes the one in
progress, ``latest`` drops it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "InputFrame", "InputQueue", "Policy"]

Pixels = NDArray[np.uint8]
Policy = Literal["latest", "all"]


class InputFrame(NamedTuple):
    """A frame that came in.

    Attributes:
        pixels: uint8 (H, W, 3).
        timestamp: its producer's, in seconds.
        arrived: when it came, by the session's clock.
        stream: number of the stream that it belongs to.
    """

    pixels: Pixels
    timestamp: float
    arrived: float
    stream: int


class Batch(NamedTuple):
    """What to edit next.

    Attributes:
        frames: of one stream, in order: a block of them, or fewer if they are the last.
        stream: its number.
        last: whether the stream ends with them.
    """

    frames: list[InputFrame]
    stream: int
    last: bool


class InputQueue:
    """The frames that wait. Not thread-safe: its session sees to that.

    Args:
        policy: "latest" or "all".
        first, later: frames that the first block of a stream and any later one take.
        bound: under ``all``, how many frames may wait; default two blocks.
        max_wait: under ``latest``, see above, in seconds.

    Attributes:
        dropped: frames that came in and were dropped.
        ended: no more frames will come.

    Raises:
        ValueError: for another policy, a bound that cannot hold a block, or a time below zero.
    """

    def __init__(
        self,
        policy: Policy,
        first: int,
        later: int,
        bound: int | None = None,
        max_wait: float = math.inf,
    ) -> None:
        if policy not in ("latest", "all"):
            raise ValueError(f"policy is 'latest' or 'all', got {policy!r}")
        if bound is not None and (policy == "latest" or bound < later):
            raise ValueError(
                f"a bound goes with policy 'all' and is at least a block of {later} frames, "
                f"got {bound} with {policy!r}"
            )
        if not max_wait >= 0:
            raise ValueError(f"max_wait must not be negative, got {max_wait}")
        self.policy = policy
        self.dropped = 0
        self.ended = False
        self._first, self._later = first, later
        self._bound = bound or 2 * later
        self._max_wait = max_wait
        self._waiting: deque[InputFrame] = deque()
        self._newest = 0  # number of the stream that the next frame belongs to
        self._open: int | None = None  # the stream in progress
        self._size: tuple[int, ...] | None = None
        self._taken: float | None = None  # timestamp of the stream's last frame that was taken

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, pixels: Pixels, timestamp: float, arrived: float) -> bool:
        """Take a frame in; false if there is no room, which only happens under ``all``."""
        if self.policy == "all" and len(self._waiting) >= self._bound:
            return False
        if self._size not in (None, pixels.shape):
            self.cut()
        self._size = pixels.shape
        self._waiting.append(InputFrame(pixels, timestamp, arrived, self._newest))
        if self.policy == "latest":
            self._drop_old(arrived - self._max_wait)
            if len(self._waiting) > self._bound:
                self._thin()
        return True

    def _drop_old(self, before: float) -> None:
        while len(self._waiting) > self._later and self._waiting[0].arrived < before:
            self._waiting.popleft()
            self.dropped += 1

    def cut(self) -> None:
        """What comes from now on is another stream."""
        if self.policy == "latest":
            self.drop()
        self._newest += 1

    def drop(self) -> None:
        """Drop what waits."""
        self.dropped += len(self._waiting)
        self._waiting.clear()

    @property
    def ready(self) -> bool:
        """Whether there is something to `take`."""
        return self._due() is not None

    @property
    def done(self) -> bool:
        """Whether no more will be to `take`, ever."""
        return self.ended and self._due() is None

    def take(self) -> Batch | None:
        """What to edit next, None if there is not enough for a block."""
        due = self._due()
        if due is None:
            return None
        count, stream, last = due
        if stream != self._open:
            self._taken = None
        frames = self._evenly(count) if self.policy == "latest" else self._oldest(count)
        self._open = None if last else stream
        self._taken = frames[-1].timestamp if frames else None
        return Batch(frames, stream, last)

    def _due(self) -> tuple[int, int, bool] | None:
        """What `take` would give: how many frames, their stream, and whether it ends."""
        ahead = self._waiting[0].stream if self._waiting else None
        in_progress = self._open
        if in_progress is not None and ahead != in_progress:
            over = self.ended or in_progress != self._newest
            if over and (self.policy == "all" or in_progress == self._newest):
                return 0, in_progress, True
        if ahead is None:
            return None
        count = sum(frame.stream == ahead for frame in self._waiting)
        needed = self._later if ahead == in_progress else self._first
        if count >= needed:
            return needed, ahead, False
        return (count, ahead, True) if self.ended or ahead != self._newest else None

    def _oldest(self, count: int) -> list[InputFrame]:
        return [self._waiting.popleft() for _ in range(count)]

    def _thin(self) -> None:
        """Drop the frame that is missed least: the gap it leaves in time is the smallest."""
        times = [frame.timestamp for frame in self._waiting]
        before = times[0] - (times[1] - times[0]) if self._taken is None else self._taken
        times.insert(0, before)
        gaps = [after - before for before, after in zip(times, times[2:], strict=False)]
        del self._waiting[gaps.index(min(gaps))]
        self.dropped += 1

    def _evenly(self, count: int) -> list[InputFrame]:
        """So many of the waiting frames, nearest to even spacing up to the newest; drop the rest.

        The first is to follow the last one of the block before by as much, unless the input paused.
        """
        frames = list(self._waiting)
        self._waiting.clear()
        self.dropped += len(frames) - count
        if count in (0, len(frames)):
            return frames[:count]
        if count == 1:
            return frames[-1:]
        times = [frame.timestamp for frame in frames]
        start = times[0] - (times[-1] - times[0]) / (count - 1)
        if self._taken is not None:
            start = max(start, self._taken)
        step = (times[-1] - start) / count
        chosen: list[int] = []
        for number in range(1, count + 1):
            lowest = chosen[-1] + 1 if chosen else 0
            candidates = range(lowest, len(frames) - (count - number))
            wanted = start + number * step
            chosen.append(min(candidates, key=lambda i: abs(times[i] - wanted)))
        return [frames[i] for i in chosen]
