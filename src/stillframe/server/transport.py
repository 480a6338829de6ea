"""What a client is connected by: the protocol that WebSocket and WebRTC connections implement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stillframe.live import EditedFrame
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.messages import Hello
from stillframe.server.protocol import ProtocolError, encode

__all__ = [
    "FAILED",
    "DisconnectedError",
    "Pixels",
    "ReceivedFrame",
    "Transport",
    "UnusableFrameError",
    "last_message",
]

Pixels = NDArray[np.uint8]

#: What a client is told of a fault that is not its own.
FAILED = "the server failed; its log says how"

_DONE, _FAILED, _BUSY = 1000, 1011, 1013


class DisconnectedError(Exception):
    """The client has gone."""


class UnusableFrameError(ValueError):
    """A frame that cannot be used, of a client whose other frames may be good."""


@dataclass(frozen=True)
class ReceivedFrame:
    """A frame of a client, not decoded yet.

    Attributes:
        timestamp: by the client's clock, in seconds.
        decode: makes its pixels, uint8 (H, W, 3); takes a while, so call it on a thread. Raises a
            ValueError or ProtocolError if it cannot be used.
    """

    timestamp: float
    decode: Callable[[], Pixels]


class Transport(Protocol):
    """One client's connection. All but `encode` is called in the event loop.

    Attributes:
        limits: of what the client may send.
        returns_timestamps: whether frames go back with the client's timestamps; else with times
            that always rise.
    """

    limits: Limits
    returns_timestamps: bool

    @property
    def dropped(self) -> int:
        """Edited frames that were dropped here because the client reads too slowly."""
        ...

    def admitted(self) -> AbstractAsyncContextManager[Hello]:
        """The client's hello, once it may have a session; it counts as a connection meanwhile.

        Raises:
            ProtocolError: it says something else, or too late, or its token is wrong.
            RefusedError: there is no room for it.
            DisconnectedError: it has gone.
        """
        ...

    async def start(self, width: int, height: int, unusable: Callable[[str], None]) -> None:
        """A session is there, with edited frames of this size: get ready for its messages.

        Args:
            unusable: to be called with the reason when a frame is dropped that `receive` never saw.

        Raises:
            ProtocolError: the client's offer cannot be used, or it is too slow.
            DisconnectedError: it has gone.
        """
        ...

    async def receive(self) -> str | ReceivedFrame:
        """The client's next message.

        Raises:
            UnusableFrameError: it is a frame that cannot be used.
            DisconnectedError: the client has gone.
        """
        ...

    def encode(self, frame: EditedFrame, timestamp: float, quality: int) -> bytes | None:
        """An edited frame as a message; None if video goes its own way here, and has gone it.

        Args:
            timestamp: that it goes out with.
            quality: of a JPEG picture, 1 to 100.
        """
        ...

    async def send(self, message: str | bytes) -> None:
        """Send a message; waits while the client does not read.

        Raises:
            DisconnectedError: the client has gone.
        """
        ...

    async def close(self, error: Exception | None) -> None:
        """Tell the client why, if it is an error, and close; see `last_message`."""
        ...

    def abort(self) -> None:
        """Cut off a client that does not read, without a word."""
        ...


def last_message(error: Exception | None) -> tuple[int, str, str | None]:
    """How a connection ends: a WebSocket's code, the reason, and the text before that."""
    if error is None:
        return _DONE, "", None
    if isinstance(error, RefusedError):
        return _BUSY, str(error), encode("refused", reason=str(error))
    code = error.code if isinstance(error, ProtocolError) else _FAILED
    return code, str(error), encode("error", message=str(error))
