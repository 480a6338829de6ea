"""A live source on its way into a session: read, given the clock's times, opened again when lost.

Frames of a network or a camera are taken as they come; a file is read at the pace of its own times.
What waited while the source was looked at is left out, for the newest frame is the one wanted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stillframe.errors import InputError, StillframeError
from stillframe.live.sound import SoundBuffer, SoundDecoder
from stillframe.video import Frame, Source, VideoReader

__all__ = ["Feed", "SourceFacts", "pauses"]

_BACKLOG_S = 3.0
_WAIT_S = 0.1


class SourceFacts(NamedTuple):
    """What a source has said of itself.

    Attributes:
        width, height: of its frames, in pixels.
        fps: frames a second, nominal.
        has_sound: whether it has any.
    """

    width: int
    height: int
    fps: float
    has_sound: bool


class Taker(Protocol):
    """Where frames go: a session."""

    def push(
        self, frame: NDArray[np.uint8], timestamp: float, timeout: float | None = None
    ) -> bool: ...


def pauses(total: float) -> list[float]:
    """Seconds between attempts, growing from 0.5 to 10, for as long as it is tried at all."""
    found: list[float] = []
    pause = 0.5
    while total > 0:
        found.append(min(pause, total))
        total -= found[-1]
        pause = min(2 * pause, 10.0)
    return found


class Feed:
    """Reads a source on a thread of its own.

    Args:
        source: what is read.
        sound: where its sound goes.
        reconnect: seconds for which a source that went away is called again; 0: it has ended.
        stop: true ends it.
        tell: called with a sentence when the source goes and comes.

    Attributes:
        facts: of the source, once it was opened.
        error: why it ended, if not as it should.
        frames: read so far.
        away: whether the source has gone, and is called again.
        returns: how often it came back.
    """

    def __init__(
        self,
        source: Source,
        sound: SoundBuffer,
        reconnect: float,
        stop: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.facts: SourceFacts | None = None
        self.error: StillframeError | None = None
        self.frames = self.returns = 0
        self.away = False
        self._source, self._sound, self._reconnect = source, sound, reconnect
        self._stop, self._tell = stop, tell
        self._taker: Taker | None = None
        self._ready = threading.Event()
        self._newest = -np.inf
        self._thread = threading.Thread(target=self._run, name="stillframe-feed", daemon=True)

    def start(self) -> None:
        """Open the source."""
        self._thread.start()

    def give_to(self, taker: Taker) -> None:
        """Read it, once it is open."""
        self._taker = taker
        self._ready.set()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for its thread, which may sit in a read of the network."""
        self._ready.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            reader = self._first()
            while reader is not None:
                with reader:
                    self._read(reader)
                can_return = self._source.kind in ("network", "device") and self._reconnect > 0
                reader = self._again() if can_return and not self._stop() else None
        except StillframeError as error:
            self.error = error

    def _first(self) -> VideoReader | None:
        """The source, opened; one that is listened at is waited for."""
        while not self._stop():
            try:
                reader = self._open()
            except InputError:
                if not self._source.listens:
                    raise
                time.sleep(_WAIT_S)  # nobody has called yet, or not as one should
            else:
                while not self._ready.wait(_WAIT_S):
                    if self._stop():
                        reader.close()
                        return None
                return reader
        return None

    def _open(self) -> VideoReader:
        reader = VideoReader(self._source, stop=self._stop)
        sounds = reader.companions.sounds
        if self.facts is None:
            self.facts = SourceFacts(reader.width, reader.height, reader.fps, bool(sounds))
        return reader

    def _again(self) -> VideoReader | None:
        """The source, which had gone, opened again.

        Raises:
            InputError: it did not come back.
        """
        self.away = True
        self._tell(f"{self._source.name} has gone; calling again for {self._reconnect:g} s")
        end = time.monotonic() + self._reconnect
        for pause in pauses(self._reconnect):
            try:
                reader = self._open()
            except InputError:
                if self._sleep(min(pause, end - time.monotonic())):
                    return None
                if time.monotonic() >= end:
                    break
                continue
            self.away = False
            self.returns += 1
            self._tell(f"{self._source.name} is there again")
            return reader
        raise InputError(
            f"{self._source.name} has gone and did not come back within {self._reconnect:g} s"
        )

    def _sleep(self, seconds: float) -> bool:
        """Wait; whether it is to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop():
            time.sleep(min(left, _WAIT_S))
        return self._stop()

    def _read(self, reader: VideoReader) -> None:
        """Hand on frames and sound, on the clock's time line."""
        shift: float | None = None
        tick = float(reader.time_base)

        def heard(seconds: float, samples: NDArray[np.int16]) -> None:
            if shift is not None:
                self._sound.add(seconds + shift, samples)

        sounds = reader.companions.sounds
        if sounds:
            reader.connect_audio(SoundDecoder(sounds[0], heard))  # type: ignore[arg-type]
        backlog = Backlog(self._source.kind == "network")
        for frame in reader:
            if self._stop():
                return
            seconds, now = frame.pts * tick, time.monotonic()
            if shift is None:
                if backlog.holds(seconds, now):
                    continue
                shift = now - seconds
            if not self._source.is_live and self._sleep(shift + seconds - now):
                return
            self._push(frame, shift + seconds)

    def _push(self, frame: Frame, seconds: float) -> None:
        assert self._taker is not None
        self.frames += 1
        if seconds > self._newest:
            self._newest = seconds
            self._taker.push(frame.pixels, seconds)


class Backlog:
    """Tells frames that waited to be read, which come as fast as they are decoded, from later ones.

    Args:
        expected: whether there may be some.
    """

    def __init__(self, expected: bool) -> None:
        self._expected = expected
        self._before: tuple[float, float] | None = None
        self._first: float | None = None

    def holds(self, seconds: float, now: float) -> bool:
        """Whether the frame of a time, which has come now, is still one of them."""
        if not self._expected:
            return False
        self._first = now if self._first is None else self._first
        before, self._before = self._before, (seconds, now)
        if now - self._first > _BACKLOG_S:
            return False
        return before is None or now - before[1] < 0.5 * (seconds - before[0])
