"""Messages that wait to be sent to one client, which may read slowly, or not at all.

Filled by a session's thread, emptied by the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["SendQueue"]

T = TypeVar("T")


class SendQueue(Generic[T]):
    """A bounded queue of messages in order. Make it in a running event loop.

    Frames of edited video are bounded by number: one more, and the oldest is dropped, or the
    thread that puts it waits. All other messages are a few per block of frames, and as bounded.

    Args:
        frames: how many may wait.
        drops: whether frames are dropped.

    Attributes:
        dropped: how many were.
    """

    def __init__(self, frames: int, drops: bool) -> None:
        self.dropped = 0
        self._most, self._drops = frames, drops
        self._messages: deque[tuple[bool, T]] = deque()
        self._frames = 0
        self._closed = False
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: T, *, frame: bool = False) -> None:
        """Add a message, from any thread. Only for a frame this may wait for room."""
        with self._changed:
            if frame and not self._drops:
                self._changed.wait_for(lambda: self._frames < self._most or self._closed)
            if self._closed:
                return
            if len(self._messages) >= 4 * self._most:
                self._drop(frames=False)
            if frame and self._frames >= self._most:
                self._drop(frames=True)
                self.dropped += 1
            self._messages.append((frame, message))
            self._frames += frame
            self._loop.call_soon_threadsafe(self._filled.set)

    def _drop(self, frames: bool) -> None:
        """Drop the oldest that is, or is not, a frame."""
        for number, (frame, _) in enumerate(self._messages):
            if frame == frames:
                del self._messages[number]
                self._frames -= frame
                return

    async def get(self) -> T:
        """The next message, as soon as there is one."""
        while True:
            with self._changed:
                if self._messages:
                    frame, message = self._messages.popleft()
                    self._frames -= frame
                    self._changed.notify_all()
                    return message
                self._filled.clear()
            await self._filled.wait()

    def close(self) -> None:
        """Take no more, forget what is there, and let a thread go that waits."""
        with self._changed:
            self._closed = True
            self._messages.clear()
            self._frames = 0
            self._changed.notify_all()
