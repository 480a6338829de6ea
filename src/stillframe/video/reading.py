"""Decode a video file or stream into upright 8-bit RGB frames, one at a time.

Knows decoding, sizes and times. Does not know who reads. Still images are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from stillframe.errors import InputError
from stillframe.video.companions import Companions
from stillframe.video.damage import Damage
from stillframe.video.deinterlacing import Deinterlacer
from stillframe.video.demuxing import Demuxer
from stillframe.video.formats import check_pixels, limit_decoder
from stillframe.video.library import fraction
from stillframe.video.picture import Orientation, ToRgb
from stillframe.video.places import BACKGROUNDS, Source
from stillframe.video.stills import Stills, is_animated_webp
from stillframe.video.timing import LEAST_FPS, DecodingOrder, InputClock
from stillframe.video.tracks import PacketSink
from stillframe.video.vectors import CODECS, BlockMotion, export_vectors, read_motion

__all__ = ["Frame", "VideoReader"]

_SMALLEST = 16
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_FPS_IF_UNKNOWN = 25.0
# High-speed cameras reach it, and rates of a clock of milliseconds.
_HIGHEST_FPS = 100_000.0
# Where a stream does not know its rate, FFmpeg guesses up to that of its clock.
_HIGHEST_LIVE_FPS = 240.0


class Frame(NamedTuple):
    """One decoded picture.

    Attributes:
        pixels: uint8 (height, width, 3), RGB, upright.
        pts: presentation time in ticks of the reader's `time_base`, counted from the file's start.
        motion: what its codec moved, where the reader was asked for it.
        duration: ticks for which it is shown; None if nothing says so. Of a file's frames it is the
            time to the next one.
    """

    pixels: NDArray[np.uint8]
    pts: int
    motion: BlockMotion | None = None
    duration: int | None = None


class VideoReader:
    """A video file or stream, opened and probed; iterating yields its frames as they are decoded.

    Like an open text file it has one position: a second loop goes on where the first one stopped.
    Use it as a context manager.

    What cannot be decoded is skipped and told in `damage`. Frames of another size than the first
    are scaled to it. HDR becomes SDR (see `tone`); frames that say that they are interlaced are
    deinterlaced; transparent ones are shown on `Source.background`.
    Presentation times are the file's own (variable frame rates included), counted from the start of
    its earliest stream, and repaired where they do not increase.

    A stream ends when its sender ends it, falls silent for its `Source.timeout` (network sources
    only), or `stop` says so.

    Args:
        source: a path, a folder of pictures, a pattern as frames/%04d.png, a URL, a device, "-" for
            standard input, or a `Source`.
        stop: asked before every read of a pipe and while it is silent; true ends it.
        motion: whether to tell of every frame what its codec moved.
        max_frames: stop after so many frames; sound stops where the last of them ends, wherever
            the container keeps it.
        first_frame: begin with this one, from 0, at its own time; those before it are decoded and
            no more. Sound is that of the file from its start.

    Attributes:
        source: where the video comes from.
        path: the file, None of anything else.
        name: what to call it.
        width, height: of the upright frames, in pixels.
        rotation: degrees clockwise by which stored pictures are turned: 0, 90, 180 or 270.
            Mirroring is undone too.
        time_base: seconds per tick of `Frame.pts`.
        fps: average frame rate, in frames per second.
        frames_estimate: how many frames the file says or implies that it has; None if unknown.
        sample_aspect_ratio: width of an upright pixel divided by its height.

    Raises:
        InputError: the file is missing, not a video, without a decodable frame, or under 16x16; or
            a stream does not answer; or motion is asked for that its decoder does not tell.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Source,
        *,
        stop: Callable[[], bool] | None = None,
        motion: bool = False,
        max_frames: int | None = None,
        first_frame: int = 0,
    ) -> None:
        self._first_frame = first_frame
        self.source = Source.of(source)
        self.path = Path(self.source.text) if self.source.kind == "file" else None
        self.name = self.source.name
        self._damage = Damage()
        self._to_rgb = ToRgb(BACKGROUNDS[self.source.background])
        self._demuxer = self._open(stop)
        try:
            self._describe()
            self._motion = motion
            self._end = None if max_frames is None else Fraction(max_frames) / Fraction(self.fps)
            if motion:
                self._ask_for_motion()
            self._pictures = self._decode()
            read = self._read(self._probe())
            self._frames = read if max_frames is None else self._first(max_frames, read)
        except BaseException:
            self._demuxer.close()
            raise

    def _open(self, stop: Callable[[], bool] | None) -> Demuxer | Stills:
        is_webp = self.path is not None and is_animated_webp(self.path)
        if is_webp or self.source.kind == "images":
            return Stills(self.source, self._damage)
        return Demuxer(self.source, self._damage, stop)

    def _describe(self) -> None:
        stream: Any = self._demuxer.video
        duration = self._demuxer.duration
        self._stream = stream
        self._decoder = stream.codec_context
        self._has_no_times = False
        if isinstance(self._demuxer, Demuxer):
            self._find_decoder(self._demuxer.container.format.name)
        self.time_base = fraction(stream.time_base) or Fraction(1, 90_000)
        self.fps = float(stream.average_rate or stream.guessed_rate or _FPS_IF_UNKNOWN)
        if not LEAST_FPS <= self.fps <= _HIGHEST_FPS:
            # nonsense, where a file is damaged; its times may be good
            self.fps = _FPS_IF_UNKNOWN
        if self._has_no_times and stream.guessed_rate:
            # it counts ticks without a picture, too
            self.fps = min(self.fps, max(LEAST_FPS, float(stream.guessed_rate)))
        if self.source.is_live and self.fps > _HIGHEST_LIVE_FPS:
            self.fps = _FPS_IF_UNKNOWN
        is_counted = not self.source.is_live and not self._has_no_times
        self.frames_estimate: int | None = stream.frames or None if is_counted else None
        if self.frames_estimate is None and duration:
            self.frames_estimate = max(1, round(duration * Fraction(self.fps)))
        if self.frames_estimate is not None:
            self.frames_estimate = max(0, self.frames_estimate - self._first_frame)

    def _find_decoder(self, container: str) -> None:
        stream = self._stream
        self._has_no_times = container == "avi"
        if "1" in (stream.metadata.get("alpha_mode"), stream.metadata.get("ALPHA_MODE")):
            # FFmpeg's own decoders of VP8 and VP9 leave alpha out
            with contextlib.suppress(ValueError, KeyError):
                self._decoder = av.CodecContext.create(_WITH_ALPHA[self._decoder.name], "r")
                limit_decoder(self._decoder, self.source.max_pixels)

    def _ask_for_motion(self) -> None:
        codec: Any = self._stream.codec_context
        if codec is None:
            raise InputError(f"{self.name} is of single pictures, which have no motion vectors")
        if codec.name not in CODECS:
            raise InputError(
                f"{self.name} is coded as {codec.name}, whose decoder tells no motion vectors; "
                f"those of {', '.join(CODECS)} do"
            )
        export_vectors(codec)

    def _probe(self) -> av.VideoFrame:
        """Decode the first frame: only it tells the true size and the orientation."""
        first = next(self._pictures, None)
        if first is None:
            raise InputError(self._demuxer.why_empty)
        self._orientation = Orientation.of(first)
        self.rotation = self._orientation.rotation
        self.width, self.height = first.width, first.height
        self.sample_aspect_ratio = fraction(self._stream.sample_aspect_ratio) or Fraction(1)
        if self._orientation.transpose:
            self.width, self.height = first.height, first.width
            self.sample_aspect_ratio = 1 / self.sample_aspect_ratio
        if min(self.width, self.height) < _SMALLEST:
            raise InputError(
                f"{self.name} is {self.width}x{self.height} pixels and the smallest usable size is "
                f"{_SMALLEST}x{_SMALLEST}"
            )
        return first

    @property
    def companions(self) -> Companions:
        """What the file has beside its pictures; packets of it are what `connect_audio` hands over.

        Of the first `max_frames`, chapters that begin later are left out.
        """
        found = self._demuxer.companions
        return found if self._end is None else found.until(self._end)

    @property
    def damage(self) -> str | None:
        """What was lost so far and where, in one sentence without a full stop; None if nothing."""
        return self._damage.sentence()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the pictures so far that one may want to know, a sentence each, without
        a full stop."""
        curve = self._to_rgb.curve
        told = f"{self.name} is HDR ({curve}): its pictures were tone-mapped to SDR"
        return () if curve is None else (told,)

    @property
    def fell_silent(self) -> bool:
        """Whether it ended because nothing came for its `Source.timeout`."""
        return self._demuxer.fell_silent

    def connect_audio(self, sink: PacketSink | None) -> None:
        """Hand every packet of sound and subtitles to `sink`, in the thread that iterates.

        Nothing is stored: whoever connects after the first frame was taken misses the packets
        before it. Times count from the file's start, as those of frames do. None disconnects.
        """
        self._demuxer.tracks.connect(sink)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file or stream. Iteration ends; attributes stay."""
        self._frames.close()
        self._pictures.close()
        self._demuxer.close()

    def _first(
        self, count: int, frames: Generator[Frame, None, None]
    ) -> Generator[Frame, None, None]:
        """The first frames, with sound to the end of the last one and no further."""
        tracks, tick = self._demuxer.tracks, float(self.time_base)
        tracks.hold()
        end = 0
        for frame in islice(frames, count):
            tracks.release(frame.pts * tick)
            end = frame.pts + (frame.duration or max(1, round(1 / self.fps / tick)))
            count -= 1
            yield frame
        if count:
            tracks.release()
        else:
            self._demuxer.finish_tracks(end * tick)

    def _read(self, first: av.VideoFrame) -> Generator[Frame, None, None]:
        start = round(self._demuxer.start / self.time_base)
        clock = InputClock(self.time_base, self.fps, start)
        to_rgb = self._to_rgb
        width, height = first.width, first.height
        self._demuxer.tracks.begin()
        held: Frame | None = None
        for number, picture in enumerate(chain((first,), self._pictures)):
            given = picture.dts if picture.pts is None else picture.pts
            pts = clock(given)
            if number < self._first_frame:
                continue
            pixels = self._orientation.apply(to_rgb(picture, width, height))
            motion = read_motion(picture, self._orientation) if self._motion else None
            shown = None if given is None else picture.duration or None
            frame = Frame(pixels, pts, motion, shown)
            if self.source.is_live:
                # the next one may be long in coming
                yield frame
            elif held is not None:
                yield held._replace(duration=pts - held.pts)
            held = frame
        if held is not None and not self.source.is_live:
            yield held._replace(duration=self._last_duration(held, clock.is_file_time))

    def _last_duration(self, frame: Frame, is_file_time: bool) -> int | None:
        """Ticks from a frame to the end of the file, if times are still those of the file.

        Made-up times go on at the frame rate, which durations may contradict.
        """
        end = round(self._demuxer.picture_end / float(self.time_base))
        return end - frame.pts if is_file_time and end > frame.pts else frame.duration

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Whole pictures in order of presentation."""
        deinterlacer = Deinterlacer(self.time_base)
        name, most = self.name, self.source.max_pixels
        for picture in self._decode_stored():
            check_pixels(name, picture.width, picture.height, most)
            yield from deinterlacer.push(picture)
        yield from deinterlacer.flush()

    def _decode_stored(self) -> Generator[av.VideoFrame, None, None]:
        """Pictures as they are stored; packets that do not decode are counted and skipped."""
        if isinstance(self._demuxer, Stills):
            yield from self._demuxer.pictures()
            return
        seconds = None
        order = DecodingOrder()
        for packet in self._demuxer.packets():
            seconds = self._demuxer.seconds(packet)
            if packet.dts is not None:
                order.decode(packet.dts, packet.is_keyframe)
            try:
                pictures = self._decoder.decode(packet)
            except av.FFmpegError:
                self._damage.undecoded.add(seconds)
                order.fail()
                continue
            for picture in pictures:
                if picture.is_corrupt:
                    self._damage.concealed.add(seconds)
                yield self._timed(picture, order)
        try:
            for picture in self._decoder.decode(None):
                yield self._timed(picture, order)
        except av.FFmpegError:
            self._damage.undecoded.add(seconds)

    def _timed(self, picture: av.VideoFrame, order: DecodingOrder) -> av.VideoFrame:
        """A picture with a time of presentation, which AVI does not have."""
        time = order.show(bool(picture.key_frame))
        if (self._has_no_times or picture.pts is None) and time is not None:
            picture.pts = time
        return picture
