"""Write frames to a video file that is complete or not there, or to a stream as they come.

Knows what happens to an output on errors and on Ctrl-C. Does not know encoders (`encoding`), what
becomes of files (`targets`) nor where frames come from; sound comes from a reader as it is met.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stillframe.errors import OutputClosedError, OutputError
from stillframe.untrusted.printable import printable
from stillframe.video.companions import Companions
from stillframe.video.encoding import Encoder, Picture
from stillframe.video.places import Sink
from stillframe.video.reading import VideoReader
from stillframe.video.targets import find_target
from stillframe.video.timing import LEAST_FPS, OutputClock
from stillframe.video.worker import Worker

__all__ = ["VideoWriter"]

# Frames and packets that may wait for the encoder: enough to overlap with a model, few to hold.
_QUEUE = 8
# Keeps 30000/1001 and its kin exact.
_LARGEST_RATE_DENOMINATOR = 1001


class VideoWriter:
    """Encodes frames into a file that appears under its name when it is complete, or a stream.

    Until then a file grows beside it as NAME.part.EXT. Leaving the `with` block normally completes
    and renames it; leaving by an exception deletes it, and a file that was there before stays. To
    keep what there is after Ctrl-C, catch KeyboardInterrupt inside the block or call `close()`:
    frames that were accepted are in the file. Encoding runs in a thread of its own, a few frames
    behind.

    A stream (standard output, a URL) is sent as it is made, every frame at once; there is nothing
    to rename or delete. When nobody reads it any more, `write` or `close` raises OutputClosedError.

    MP4, M4V and MOV (H.264) hold presentation times exactly; MKV (H.264) and WebM (VP9) to the
    millisecond, GIF to the hundredth of a second, AVI (MPEG-4) to the multiple of 1/fps. Of streams
    mpegts holds them to 1/90000 s, matroska and flv to the millisecond, and y4m not at all: it is
    so many frames a second.

    Args:
        path: the file to make, whose extension names the container; or a URL, "-" or a `Sink`.
        width, height: of the frames that `write` will get, in pixels.
        time_base: seconds per tick of the times that `write` will get.
        fps: nominal frame rate, for the header and for frames whose duration is not given.
        codec: FFmpeg's name of a video encoder; None for the container's usual one.
        crf: quality on libx264's scale, 0 (lossless) to 51; others are set to look about the same.
        sample_aspect_ratio: width of a pixel divided by its height.
        audio_from: a reader whose sound, subtitles, chapters and tags go along while it is read, as
            far as the container holds them; make the writer before taking the reader's first frame.
            Sound is copied unchanged, or else transcoded to the container's usual codec.
        stop: asked while a stream takes nothing; once true it is given 2 seconds to go on.

    Attributes:
        name: what to call the output.
        width, height: of the pictures in the file: one less than asked where H.264 needs them even.
        frames_written: how many frames were accepted.
        frames_left_out: how many of them came too soon for the container and are not in the file.
        gaps: how many frames came late and were moved up, because a stream does not hold times.

    Raises:
        OutputError: nothing can be written there (see `check_output`).
        OutputClosedError: nobody reads the stream.
        ValueError: an argument makes no sense, or the container cannot hold what `codec` makes.

    Warns:
        UserWarning: the container cannot hold something, which is left out, or holds it otherwise.
    """

    def __init__(
        self,
        path: str | PathLike[str] | Sink,
        width: int,
        height: int,
        time_base: Fraction,
        fps: float | Fraction,
        *,
        codec: str | None = None,
        crf: int = 18,
        sample_aspect_ratio: Fraction = Fraction(1),
        audio_from: VideoReader | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        if (
            min(width, height) < 2
            or time_base <= 0
            or not LEAST_FPS <= fps < 1e6
            or not 0 <= crf <= 51
        ):
            raise ValueError(
                "width and height must be 2 or more, time_base positive, "
                "fps from 1/3600 to 1e6, and crf in 0..51, "
                f"not {width}x{height}, {time_base}, {fps} and {crf}"
            )
        self._target = find_target(Sink.of(path), audio_from.path if audio_from else None)
        self.name = self._target.name
        self.frames_written = self.frames_left_out = self.gaps = 0
        self._last_tick = 0
        self._shape = (height, width, 3)
        self._failure: Exception | None = None
        self._closed = self._is_stuck = False
        container = self._target.container
        rate = Fraction(fps).limit_denominator(max(_LARGEST_RATE_DENOMINATOR, math.ceil(1 / fps)))
        self._clock = OutputClock(time_base, container.grid(time_base, rate), container.least_ticks)
        picture = Picture(width, height, self._clock.grid, rate, sample_aspect_ratio, crf)
        companions = audio_from.companions if audio_from else Companions()
        self._encoder = self._open(codec or container.codec, picture, companions)
        self.width, self.height = self._encoder.width, self._encoder.height
        self._worker = Worker(_QUEUE, None if container.stream is None else stop)
        self._audio_from = audio_from
        if audio_from is not None:
            audio_from.connect_audio(self._accept_audio)
        for loss in self.losses:
            self._warn(loss)

    def _open(self, codec: str, picture: Picture, companions: Companions) -> Encoder:
        try:
            address = self._target.open()
        except OSError as error:
            raise self._target.explain(error) from error
        try:
            return Encoder(address, self._target.container, codec, picture, companions)
        except BaseException as error:
            self._target.discard()
            if isinstance(error, (OSError, av.FFmpegError)):
                raise self._target.explain(error) from error
            raise

    def _warn(self, message: str) -> None:
        try:
            warnings.warn(printable(message), stacklevel=3)
        except Warning:
            # Warnings are errors to this caller: leave nothing behind.
            self.close(keep=False)
            raise

    @property
    def audio_dropped(self) -> str | None:
        """Why the sound of `audio_from` is not in the file; None if it is or there was none."""
        return self._encoder.audio_dropped

    @property
    def losses(self) -> tuple[str, ...]:
        """What of `audio_from` is not in the file as it was there, a sentence each without a full
        stop."""
        told = []
        if self.audio_dropped is not None:
            told.append(f"{self.name} has no sound: {self.audio_dropped}")
        if self._encoder.left_out:
            told.append(f"{self.name} is without {', '.join(self._encoder.left_out)}")
        if self._encoder.transcoded:
            told.append(f"{self.name} has {', '.join(self._encoder.transcoded)}")
        if self.frames_left_out:
            told.append(
                f"{self.name} is without {self.frames_left_out} of {self.frames_written} frames: "
                "browsers slow down what a GIF shows for less than 20 ms"
            )
        return tuple(told)

    def write(self, pixels: NDArray[np.uint8], pts: int, duration: int | None = None) -> None:
        """Add a frame.

        Args:
            pixels: uint8 (height, width, 3), RGB; copied, so it may be reused.
            pts: presentation time in ticks of `time_base`, 0 or more, greater than the one before.
            duration: ticks for which it is shown if it is the last one; None for 1/fps.

        Raises:
            OutputError: this or an earlier frame could not be written; nothing is left behind.
            ValueError: `pixels` or `pts` are not of that kind, or the writer is closed.
        """
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        if self._failure is not None:
            raise self._failure
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(
                f"frames of {self.name} are uint8 {self._shape}, not {pixels.dtype} {pixels.shape}"
            )
        tick = self._clock(pts)
        self.frames_written += 1
        if tick is None:
            self.frames_left_out += 1
            return
        if not self._target.container.keeps_gaps and self.frames_written > 1:
            self.gaps += tick > self._last_tick + 1
        self._last_tick = tick
        cropped = np.ascontiguousarray(pixels[: self.height, : self.width])
        frame = av.VideoFrame.from_ndarray(cropped, format="rgb24")
        frame.pts = tick
        frame.duration = 0 if duration is None else self._clock.ticks(duration)
        self._submit(self._encoder.add, frame)

    def close(self, *, keep: bool = True) -> None:
        """Complete the file and give it its name, or with `keep=False` delete it. Idempotent.

        Raises:
            OutputError: the file could not be completed, or there is no frame in it; nothing is
                left behind. Not with `keep=False`.
        """
        if self._closed:
            return
        self._closed = True
        if self._audio_from is not None:
            self._audio_from.connect_audio(None)
        last = self._publish if keep and self.frames_written else self._discard
        try:
            if not self._is_stuck:
                self._worker.end(partial(self._run, last))
        except TimeoutError:
            self._failure = self._stuck()
        if keep and self._failure is not None:
            raise self._failure
        if keep and not self.frames_written:
            raise OutputError(f"{self.name} was not written: it would have 0 frames")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(keep=exc_type is None)

    def _accept_audio(self, packet: av.Packet[Any]) -> None:
        self._submit(self._encoder.add_companion, packet)

    def _submit(self, job: Callable[..., None], argument: object) -> None:
        try:
            self._worker.submit(partial(self._run, job, argument))
        except TimeoutError as error:
            self._failure = self._stuck()
            raise self._failure from error

    def _stuck(self) -> OutputClosedError:
        # The thread stays behind with the encoder; whoever does not read keeps it there.
        self._is_stuck = True
        return OutputClosedError(f"{self.name} takes nothing more")

    def _run(self, job: Callable[..., None], *args: object) -> None:
        """In the worker's thread, where Ctrl-C cannot part an encoder from its packets."""
        if self._failure is not None:
            return
        try:
            job(*args)
        except Exception as error:
            is_expected = isinstance(error, (OSError, av.FFmpegError))
            self._failure = self._target.explain(error) if is_expected else error
            self._discard()

    def _publish(self) -> None:
        self._encoder.finish()
        self._target.publish()

    def _discard(self) -> None:
        self._encoder.abandon()
        self._target.discard()
