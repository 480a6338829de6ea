"""Messages between the server's process and the one that runs the model.

A message is a pickled tuple, and pixels follow as they lie in memory, so that they are not copied
into the pickle. Both ends are one program: whoever can write to the channel could as well run code.
It is a pair of sockets, which the system closes with their process: nothing is left to clean up.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Channel", "ChannelClosedError", "Counters", "ModelInfo"]

Pixels = NDArray[np.uint8]


class ChannelClosedError(Exception):
    """The process at the other end has gone."""


class ModelInfo(NamedTuple):
    """What the server needs to know of the model.

    Attributes:
        default_height: working height where a caller gives no size, in pixels.
        device: where it computes.
    """

    default_height: int
    device: str


class Counters(NamedTuple):
    """A session's counters; see the properties of `LiveSession` of those names."""

    state: str = "ready"
    paused: bool = False
    dropped: int = 0
    waiting: int = 0
    memory: tuple[tuple[str, int], ...] = (("cache", 0), ("recovery", 0))


class Channel:
    """One end of a connection. Any thread may send; one thread receives.

    Args:
        connection: of ``multiprocessing``.
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: tuple[Any, ...], pixels: Pixels | None = None) -> None:
        """Send a message, and pixels with it; waits while the other end does not read.

        Raises:
            ChannelClosedError: nobody is there any more.
        """
        shape = None if pixels is None else pixels.shape
        data = pickle.dumps((message, shape), protocol=5)
        try:
            with self._sending:
                self._connection.send_bytes(data)
                if pixels is not None:
                    # flat: a view with a side of zero cannot be cast
                    self._connection.send_bytes(np.ascontiguousarray(pixels).reshape(-1).data)
        except (OSError, EOFError) as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self) -> tuple[tuple[Any, ...], Pixels | None]:
        """The next message, as soon as there is one.

        Raises:
            ChannelClosedError: nobody is there any more.
        """
        try:
            message, shape = pickle.loads(self._connection.recv_bytes())
            if shape is None:
                return message, None
            pixels = np.empty(shape, np.uint8)
            self._connection.recv_bytes_into(pixels.reshape(-1).data)
        except (OSError, EOFError) as error:
            raise ChannelClosedError(str(error)) from error
        return message, pixels

    def poll(self, seconds: float) -> bool:
        """Wait for a message; false if none came in time. True at its end, too."""
        try:
            return self._connection.poll(seconds)
        except (OSError, EOFError):
            return True

    def shut_down(self) -> None:
        """End the channel for both, also for a thread that receives, which `close` would not."""
        with contextlib.suppress(OSError):  # it has ended already
            copy = os.dup(self._connection.fileno())
            with socket.socket(fileno=copy) as place:
                place.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the channel back; nobody may be using it."""
        self._connection.close()
