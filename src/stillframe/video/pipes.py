"""Standard input and named pipes as something to read, standard output as something to keep clean.

Knows descriptors. Does not know what the bytes mean, nor who writes or reads at the other end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator

from stillframe.video.places import Sink, Source

__all__ = ["PipeInput", "video_on_stdout"]

_STDOUT, _STDERR = 1, 2
# How late a wish to stop may be noticed while nothing comes.
_LOOK_AGAIN_S = 0.2
# Enough to tell containers apart.
_HEAD_BYTES = 16


class PipeInput:
    """A pipe as PyAV wants a file: `read` and `close`, and nothing to seek with.

    FFmpeg's own pipe would start reading again after every signal, so that Ctrl-C had to wait for a
    producer that pauses.

    Args:
        source: "-" or a named pipe.
        stop: asked before every read and while nothing comes; true ends the input.
        descriptor: to read in its place, of somebody else's.
        patience: seconds of silence that end the input; None waits as long as it takes.

    Attributes:
        head: the first bytes that came.
        fell_silent: whether silence has ended it.

    Raises:
        OSError: a named pipe cannot be opened.
    """

    def __init__(
        self,
        source: Source,
        stop: Callable[[], bool] | None = None,
        descriptor: int | None = None,
        patience: float | None = None,
    ) -> None:
        self.name = source.name
        self.head = b""
        self.fell_silent = False
        self._stop, self._patience = stop, patience
        self._is_own = source.text != "-" and descriptor is None
        self._descriptor = source.descriptor if descriptor is None else descriptor
        if self._is_own:
            self._descriptor = os.open(source.text, os.O_RDONLY)

    def read(self, count: int) -> bytes:
        """At most `count` bytes, as soon as there are any; none at the end."""
        end = math.inf if self._patience is None else time.monotonic() + self._patience
        while self._stop is None or not self._stop():
            if time.monotonic() > end:
                self.fell_silent = True
                return b""
            if self._has_data():
                data = os.read(self._descriptor, count)
                if len(self.head) < _HEAD_BYTES:
                    self.head += data[:_HEAD_BYTES]
                return data
        return b""

    def _has_data(self) -> bool:
        if sys.platform == "win32":
            # select there knows only sockets: reading waits, and Ctrl-C with it
            return True
        return bool(select.select([self._descriptor], [], [], _LOOK_AGAIN_S)[0])

    def close(self) -> None:
        """Close a named pipe; standard input stays as it is. Idempotent."""
        if self._is_own:
            self._is_own = False
            os.close(self._descriptor)


@contextlib.contextmanager
def video_on_stdout(sink: Sink) -> Iterator[Sink]:
    """Keep standard output for the video: whatever else is printed meanwhile goes to stderr.

    Libraries print, some of them from C; one line of text in a stream of pictures ruins it.

    Args:
        sink: where the video goes; unless that is "-", nothing happens.

    Yields:
        the sink to write to.

    """
    if sink.text != "-":
        yield sink
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    kept = os.dup(_STDOUT)
    try:
        os.dup2(_STDERR, _STDOUT)
        yield dataclasses.replace(sink, descriptor=kept)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)
