"""Where a live result goes: an address on the network, a pipe, or a virtual camera."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from stillframe.errors import OutputClosedError, OutputError
from stillframe.video import Sink
from stillframe.video.companions import Companions
from stillframe.video.containers import Container
from stillframe.video.encoding import Encoder, Picture
from stillframe.video.targets import StreamTarget
from stillframe.video.worker import Worker

__all__ = ["CameraOutlet", "Outlet", "StreamOutlet"]

Pixels = NDArray[np.uint8]
_QUEUE = 8
_ATTEMPTS, _PAUSE_S = 5, 0.3


class Outlet(Protocol):
    """An open output; times are in seconds from its own start and rise."""

    def show(self, pixels: Pixels, seconds: float) -> None:
        """Take the next picture, (height, width, 3).

        Raises:
            OutputError: it, or one before it, could not be written.
        """

    def play(self, samples: NDArray[np.int16]) -> None:
        """Take the next samples of sound, (n, 2), without a gap from time 0 on."""

    def close(self) -> None:
        """Send what is still held, and hang up. Never raises."""


class StreamOutlet:
    """A stream, encoded on a thread of its own.

    Args:
        sink: a URL or standard output.
        width, height: of the pictures, in pixels, even.
        fps: frames a second, nominal.
        crf: quality on libx264's scale.
        sound: whether there is some.
        stop: asked while nothing is taken there; once true it is given 2 seconds to go on.

    Raises:
        OutputError: nobody is there.
    """

    def __init__(
        self,
        sink: Sink,
        width: int,
        height: int,
        fps: float,
        crf: int,
        sound: bool,
        stop: Callable[[], bool],
    ) -> None:
        self._target = StreamTarget(sink)
        container = self._target.container
        rate = Fraction(fps).limit_denominator(1001)
        self._grid = container.grid(Fraction(1, 90_000), rate)
        picture = Picture(width, height, self._grid, rate, Fraction(1), crf)
        self._failure: OutputError | None = None
        self._tick = -1
        self._closed = False
        try:
            self._encoder = self._open(container, picture, sound)
        except (OSError, av.FFmpegError) as error:
            self._target.discard()
            raise self._target.explain(error) from error
        self._worker = Worker(_QUEUE, stop)

    def _open(self, container: Container, picture: Picture, sound: bool) -> Encoder:
        """The open output. FFmpeg lets no other thread run meanwhile, so the target asks first."""
        address = self._target.open()
        for attempt in range(_ATTEMPTS):
            try:
                return Encoder(
                    address, container, container.codec, picture, Companions(), pcm=sound
                )
            except ConnectionRefusedError:
                # who takes one caller at a time has just had one that asked
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S)
        raise AssertionError

    def show(self, pixels: Pixels, seconds: float) -> None:
        """See `Outlet`."""
        tick = max(round(seconds / self._grid), self._tick + 1)
        self._tick = tick
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts = tick
        self._submit(partial(self._encoder.add, frame))

    def play(self, samples: NDArray[np.int16]) -> None:
        """See `Outlet`."""
        if len(samples):
            self._submit(partial(self._encoder.add_samples, samples))

    def close(self) -> None:
        """See `Outlet`. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._worker.end(partial(self._run, self._end))
        except TimeoutError:
            return  # the thread stays behind with the encoder

    def _end(self) -> None:
        try:
            self._encoder.finish()
        finally:
            self._target.publish()

    def _submit(self, job: Callable[[], None]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._worker.submit(partial(self._run, job))
        except TimeoutError as error:
            raise OutputClosedError(f"{self._target.name} takes nothing more") from error

    def _run(self, job: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            job()
        except Exception as error:
            self._failure = self._target.explain(error)
            self._encoder.abandon()
            self._target.discard()


class CameraOutlet:
    """A virtual camera, which other programs find among the cameras; it has no sound.

    Args:
        device: its name for the system, None for the first there is.
        width, height: of the pictures, in pixels.
        fps: frames a second, nominal.

    Attributes:
        name: what other programs find it under.

    Raises:
        OutputError: the package pyvirtualcam is not installed, or the system has no such camera.
    """

    def __init__(self, device: str | None, width: int, height: int, fps: float) -> None:
        if importlib.util.find_spec("pyvirtualcam") is None:
            raise OutputError(
                "a virtual camera needs the package pyvirtualcam: pip install 'stillframe[camera]'"
            )
        module: Any = importlib.import_module("pyvirtualcam")
        try:
            self._camera = module.Camera(width=width, height=height, fps=fps, device=device)
        except (RuntimeError, OSError) as error:
            wanted = "no virtual camera" if device is None else f"no virtual camera {device}"
            reason = " ".join(str(error).split())
            raise OutputError(f"there is {wanted} on this computer: {reason}") from error
        self.name = str(self._camera.device)

    def show(self, pixels: Pixels, seconds: float) -> None:
        """See `Outlet`."""
        self._camera.send(np.ascontiguousarray(pixels))

    def play(self, samples: NDArray[np.int16]) -> None:
        """See `Outlet`; nothing."""

    def close(self) -> None:
        """See `Outlet`."""
        self._camera.close()
