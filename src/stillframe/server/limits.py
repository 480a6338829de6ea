"""How much clients may ask of the server: the numbers, and what counts up to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stillframe.errors import StillframeError

__all__ = ["ConnectionLimit", "Limits", "RateLimit", "RefusedError"]


class RefusedError(StillframeError):
    """There is no room for a client now; its message is for the client."""


@dataclass(frozen=True)
class Limits:
    """Limits for each client. Beyond them its own connection is closed, nobody else's.

    A picture beyond its limits is dropped, and ends nothing.

    Attributes:
        message_bytes: of a binary message.
        text_bytes: of a text message.
        offer_bytes: of a WebRTC offer with its settings.
        picture_pixels, picture_side: of a frame that comes in.
        output_pixels: of the edited frames that a session asks for.
        frames_per_second, texts_per_second: of a connection; twice as many at once.
        queued_frames: edited frames that wait to be sent.
        stall_seconds: after which a client that reads nothing is cut off.
        hello_seconds: that a connection may take to say hello.
        request_seconds: that a connection may take for a request, or for the next one.
        unauthenticated, unauthenticated_each: connections that have shown no token, in all and of
            an address; with one more, the one that has been silent longest is closed.
        unauthenticated_bytes: of a message of theirs.
        idle_seconds: after which a client that sends nothing is closed.
        fps_hint: frames a second that a client should send if it does not know better.
    """

    message_bytes: int = 4 * 2**20
    text_bytes: int = 16 * 2**10
    offer_bytes: int = 64 * 2**10
    picture_pixels: int = 1920 * 1088
    picture_side: int = 4096
    output_pixels: int = 1280 * 736
    frames_per_second: float = 120.0
    texts_per_second: float = 20.0
    queued_frames: int = 32
    stall_seconds: float = 10.0
    hello_seconds: float = 10.0
    request_seconds: float = 10.0
    unauthenticated: int = 256
    unauthenticated_each: int = 64
    unauthenticated_bytes: int = 256 * 2**10
    idle_seconds: float = 600.0
    fps_hint: int = 16


class ConnectionLimit:
    """Counts what is open up to a limit; any thread may ask.

    Args:
        most: that may be open at a time.
        what: is counted, for the refusal.
    """

    def __init__(self, most: int, what: str = "sessions") -> None:
        self.most, self._what = most, what
        self._open = 0
        self._lock = threading.Lock()

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one for as long as the context lasts.

        Raises:
            RefusedError: as many are open as may be.
        """
        with self._lock:
            if self._open >= self.most:
                raise RefusedError(
                    f"the server is full: {self._open} of {self.most} {self._what} are open; "
                    f"try again later"
                )
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


class RateLimit:
    """Allows so many a second in the long run, and twice that at once (a token bucket).

    Args:
        per_second: how many.
        now: seconds since some moment in the past.
    """

    def __init__(self, per_second: float, now: Callable[[], float]) -> None:
        self._per_second, self._now = per_second, now
        self._left, self._at = 2 * per_second, now()

    def allows(self) -> bool:
        """Count one; false if it is one too many."""
        now = self._now()
        self._left = min(self._left + (now - self._at) * self._per_second, 2 * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
