"""Write frames to a video file that is complete or not there.

Knows how a file comes into being on disk, and what happens to it on errors and on Ctrl-C. Does not
know encoders (`encoding`) nor where frames come from; sound is copied from a reader as it is met.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from stillframe.errors import OutputError
from stillframe.video.encoding import CONTAINERS, Container, Encoder, Picture
from stillframe.video.reading import VideoReader
from stillframe.video.timing import OutputClock
from stillframe.video.worker import Worker

__all__ = ["VideoWriter", "check_output"]

# Frames and packets that may wait for the encoder: enough to overlap with a model, few to hold.
_QUEUE = 8
# Keeps 30000/1001 and its kin exact.
_LARGEST_RATE_DENOMINATOR = 1001


def check_output(path: str | PathLike[str], *, source: str | PathLike[str] | None = None) -> Path:
    """The real path that a video written to `path` will have, if one can be written there.

    Touches nothing, so that a program can ask before it loads a model. Symbolic links are followed.

    Args:
        path: where to write; its extension names the container.
        source: the file that is being read, which must be another.

    Raises:
        OutputError: the extension is unknown; the folder is missing or not writable; there is a
            folder or a device in the way; or `path` is `source`.
    """
    path = Path(path)
    if path.suffix.lower() not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        raise OutputError(f"{path} has no known video extension; known are {known}")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} is a folder, not a file that can be written")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is not a regular file and cannot be replaced")
    if not target.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission in {target.parent}")
    if source is not None and target.exists() and os.path.samefile(source, target):
        raise OutputError(f"{path} is the video being read; choose another output")
    return target


class VideoWriter:
    """Encodes frames into a file that appears under its name when it is complete.

    Until then it grows beside it as NAME.part.EXT. Leaving the `with` block normally completes and
    renames it; leaving by an exception deletes it, and a file that was there before stays. To keep
    what there is after Ctrl-C, catch KeyboardInterrupt inside the block or call `close()`: frames
    that were accepted are in the file. Encoding runs in a thread of its own, a few frames behind.

    MP4, M4V and MOV (H.264) hold presentation times exactly; MKV (H.264) and WebM (VP9) to the
    millisecond, GIF to the hundredth of a second, AVI (MPEG-4) to the multiple of 1/fps.

    Args:
        path: the file to make; its extension names the container.
        width, height: of the frames that `write` will get, in pixels.
        time_base: seconds per tick of the times that `write` will get.
        fps: nominal frame rate, for the header and for the duration of the last frame.
        codec: FFmpeg's name of a video encoder; None for the container's usual one.
        crf: quality on libx264's scale, 0 (lossless) to 51; others are set to look about the same.
        sample_aspect_ratio: width of a pixel divided by its height.
        audio_from: a reader whose sound is copied unchanged while it is read; make the writer
            before taking the reader's first frame.

    Attributes:
        path: as given.
        width, height: of the pictures in the file: one less than asked where H.264 needs them even.
        frames_written: how many frames were accepted.

    Raises:
        OutputError: nothing can be written there (see `check_output`).
        ValueError: an argument makes no sense, or the container cannot hold what `codec` makes.

    Warns:
        UserWarning: the container cannot hold the sound, which is left out.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        width: int,
        height: int,
        time_base: Fraction,
        fps: float | Fraction,
        *,
        codec: str | None = None,
        crf: int = 18,
        sample_aspect_ratio: Fraction = Fraction(1),
        audio_from: VideoReader | None = None,
    ) -> None:
        if min(width, height) < 2 or time_base <= 0 or not 0 < fps < 1e6 or not 0 <= crf <= 51:
            raise ValueError(
                "width and height must be 2 or more, time_base and fps positive and crf in 0..51, "
                f"not {width}x{height}, {time_base}, {fps} and {crf}"
            )
        self.path = Path(path)
        self.frames_written = 0
        self._target = check_output(path, source=audio_from.path if audio_from else None)
        self._shape = (height, width, 3)
        self._failure: Exception | None = None
        self._closed = False
        container = CONTAINERS[self.path.suffix.lower()]
        rate = Fraction(fps).limit_denominator(_LARGEST_RATE_DENOMINATOR)
        self._clock = OutputClock(time_base, container.grid(time_base, rate))
        picture = Picture(width, height, self._clock.grid, rate, sample_aspect_ratio, crf)
        audio = audio_from.audio_stream if audio_from else None
        self._encoder = self._open(container, codec or container.codec, picture, audio)
        self.width, self.height = self._encoder.width, self._encoder.height
        self._worker = Worker(_QUEUE)
        self._audio_from = audio_from
        if self.audio_dropped is not None:
            self._warn(f"{path} will have no sound: {self.audio_dropped}")
        elif audio_from is not None:
            audio_from.connect_audio(self._accept_audio)

    def _open(
        self, container: Container, codec: str, picture: Picture, audio: AudioStream | None
    ) -> Encoder:
        try:
            self._part = _create_part(self._target)
        except OSError as error:
            raise self._explain(error) from error
        try:
            return Encoder(self._part, container, codec, picture, audio)
        except BaseException as error:
            self._part.unlink(missing_ok=True)
            if isinstance(error, (OSError, av.FFmpegError)):
                raise self._explain(error) from error
            raise

    def _warn(self, message: str) -> None:
        try:
            warnings.warn(message, stacklevel=3)
        except Warning:
            # Warnings are errors to this caller: leave nothing behind.
            self.close(keep=False)
            raise

    @property
    def audio_dropped(self) -> str | None:
        """Why the sound of `audio_from` is not in the file; None if it is or there was none."""
        return self._encoder.audio_dropped

    def write(self, pixels: NDArray[np.uint8], pts: int) -> None:
        """Add a frame.

        Args:
            pixels: uint8 (height, width, 3), RGB; copied, so it may be reused.
            pts: presentation time in ticks of `time_base`, 0 or more, greater than the one before.

        Raises:
            OutputError: this or an earlier frame could not be written; nothing is left behind.
            ValueError: `pixels` or `pts` are not of that kind, or the writer is closed.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if self._failure is not None:
            raise self._failure
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(
                f"frames of {self.path} are uint8 {self._shape}, not {pixels.dtype} {pixels.shape}"
            )
        tick = self._clock(pts)
        cropped = np.ascontiguousarray(pixels[: self.height, : self.width])
        frame = av.VideoFrame.from_ndarray(cropped, format="rgb24")
        frame.pts = tick
        self._worker.submit(partial(self._run, self._encoder.add, frame))
        self.frames_written += 1

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
        self._worker.end(partial(self._run, last))
        if keep and self._failure is not None:
            raise self._failure
        if keep and not self.frames_written:
            raise OutputError(f"{self.path} was not written: it would have 0 frames")

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
        self._worker.submit(partial(self._run, self._encoder.add_audio, packet))

    def _run(self, job: Callable[..., None], *args: object) -> None:
        """In the worker's thread, where Ctrl-C cannot part an encoder from its packets."""
        if self._failure is not None:
            return
        try:
            job(*args)
        except Exception as error:
            is_expected = isinstance(error, (OSError, av.FFmpegError))
            self._failure = self._explain(error) if is_expected else error
            self._discard()

    def _publish(self) -> None:
        self._encoder.finish()
        os.replace(self._part, self._target)

    def _discard(self) -> None:
        self._encoder.abandon()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _explain(self, error: Exception) -> OutputError:
        is_full = getattr(error, "errno", None) == errno.ENOSPC
        reason = "the disk is full" if is_full else getattr(error, "strerror", None) or str(error)
        explained = OutputError(f"{self.path} could not be written: {reason}")
        explained.__cause__ = error
        return explained


def _create_part(target: Path) -> Path:
    """Create the empty file that grows beside `target`, under a name that nobody has."""
    for attempt in count(1):
        middle = ".part" if attempt == 1 else f".part{attempt}"
        part = target.with_name(target.stem + middle + target.suffix)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return part
    raise AssertionError("unreachable")
