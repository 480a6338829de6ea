"""Open a video file or stream and take it apart into packets, once, from front to back.

Knows containers, which stream is the picture, and where the input itself is broken. Does not
decode. Sound and subtitles go their own way (`tracks`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from stillframe.errors import InputError
from stillframe.video.companions import find_companions
from stillframe.video.damage import Damage
from stillframe.video.endings import is_whole_avi, is_whole_matroska, stated_end
from stillframe.video.formats import NO_DECODER, check_pixels, limit_decoder, open_options
from stillframe.video.library import TAGS_AS_BYTES
from stillframe.video.pipes import PipeInput
from stillframe.video.places import Source
from stillframe.video.srt import SrtProgram, has_srt
from stillframe.video.tracks import Tracks

__all__ = ["Demuxer"]

_MICROSECOND = Fraction(1, 1_000_000)
# FFmpeg opens text as video: these decoders draw characters.
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})
# Formats whose header states a duration; FFmpeg guesses that of others from the bit rate.
_FORMATS_WITH_DURATION = ("mp4", "matroska", "avi")
_EARLY_END_S = 0.5
# More than Matroska itself puts between two packets.
_UNEXPLAINED_BYTES = 2048
_READ_ATTEMPTS = 32
# What an MP4 or MOV begins with.
_MP4_BOXES = frozenset({b"ftyp", b"mdat", b"wide", b"free", b"skip"})
_MOST_INTERLEAVED_S = 30.0
# What looking at a stream may take before its first frame is decoded, unless its header says all.
_LIVE_OPTIONS = {"analyzeduration": "2000000"}
_OPTIONS_BY_SCHEME = {
    "rtsp": {"rtsp_flags": "prefer_tcp"},
    "rtsps": {"rtsp_flags": "prefer_tcp"},
    # A model that is slower than the sender loses packets, and goes on.
    "udp": {"overrun_nonfatal": "1", "fifo_size": "50000"},
}
# How a sender is waited for; how long is up to whoever opens.
_LISTENING = {
    "rtmp": {"listen": "1"},
    "rtsp": {"rtsp_flags": "listen", "listen_timeout": "86400"},
    "tcp": {"listen": "1"},
}
_FOREIGN = "is not in a format that is read: lists of other files are not, for one"
# A pipe's worth at a time: raw pictures are large.
_PIPE_BUFFER_BYTES = 1 << 16


class Demuxer:
    """An open video file and its packets.

    Attributes:
        container: the open file.
        video: the picture stream: the first that is not cover art.
        companions: what it has beside its pictures.
        tracks: sound and subtitles on their way out.
        picture_end: seconds from the file's start at which the last picture ends, as far as the
            file says; complete when it was read to its end.
        start: seconds at which the earliest stream begins.
        duration: seconds, 0 if unknown.
        fell_silent: whether it was given up because nothing came any more.

    Args:
        source: the file or stream.
        damage: where losses are noted.
        stop: asked while a pipe is silent; true ends it.

    Raises:
        InputError: the file is missing or not a video, or a stream does not answer.
    """

    def __init__(
        self, source: Source, damage: Damage, stop: Callable[[], bool] | None = None
    ) -> None:
        self._damage = damage
        self.fell_silent = False
        self._pipe: PipeInput | None = None
        self._source = source
        self._program: SrtProgram | None = None
        if source.scheme == "srt" and not has_srt():
            self._program = SrtProgram.receiving(source.text, source.listens)
            patience = None if source.listens else source.timeout
            self._pipe = PipeInput(source, stop, self._program.descriptor, patience)
        elif source.kind == "pipe":
            self._pipe = _open_pipe(source, stop)
        try:
            self.container = _open(source, self._pipe)
            self.video = _picture_stream(self.container, source.name)
            size = _stated_size(source, self.video)
            check_pixels(source.name, *size, source.max_pixels)
            limit_decoder(self.video.codec_context, source.max_pixels)
        except InputError:
            self.close()
            raise
        self.start = (self.container.start_time or 0) * _MICROSECOND
        # What pipes say is made up from sizes that they do not have.
        known = 0 if source.is_live else self.container.duration or 0
        self.duration = known * _MICROSECOND
        self._has_no_times = self.container.format.name == "avi"
        self.picture_end = self._last_start = 0.0
        self._pictures = 0
        self.companions = find_companions(self.container, self.video, self.start)
        kept = [*self.companions.sounds, *self.companions.subtitles]
        self.tracks = Tracks(kept, self.start)
        self._packets = self._split()

    def seconds(self, packet: av.Packet[Any]) -> float | None:
        """When the packet is shown or heard, from the file's start; None if it does not say."""
        # AVI has no other time of a picture; what FFmpeg makes of it is one frame and more too late
        has_pts = packet.pts is not None and not self._has_no_times
        stamp = packet.pts if has_pts else packet.dts
        return None if stamp is None else float(stamp * packet.time_base - self.start)

    @property
    def why_empty(self) -> str:
        """A sentence for a file that opened and has no picture, without a full stop."""
        if self._pipe is not None and self._pipe.head[4:8] in _MP4_BOXES:
            return _index_at_end(self._source.name)
        lost = self._damage.sentence()
        most = self._source.max_pixels
        told = f"{self._source.name} has a video stream but not one readable frame"
        told += f" of at most {most} pixels"
        return told if lost is None else f"{told}: {lost}"

    def packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Packets of video that hold data, in file order; all else leaves by `tracks`.

        Like an open file it has one position: it goes on where another call stopped.
        """
        return self._packets

    def finish_tracks(self, end: float) -> None:
        """Read on until all sound up to `end`, in seconds, has left; pictures are skipped.

        Containers may put sound behind the pictures that it is for, but not by more than this
        gives them; otherwise the rest of a long file would be read for a track that has ended.
        """
        # asked first: a source without sound need not send anything more
        while not self.tracks.has_reached(end):
            packet = next(self._packets, None)
            if packet is None or (self.seconds(packet) or 0.0) > end + _MOST_INTERLEAVED_S:
                break
        self.tracks.finish(end)

    def _split(self) -> Iterator[av.Packet[VideoStream]]:
        is_sequential = "matroska" in self.container.format.name
        expected_position: int | None = None
        last_end = 0.0
        for packet in self._all_packets():
            seconds = self.seconds(packet)
            if seconds is not None:
                end = seconds + float((packet.duration or 0) * packet.time_base)
                last_end = max(last_end, end)
                if packet.stream_index == self.video.index:
                    self.picture_end = max(self.picture_end, end)
                    self._last_start = max(self._last_start, seconds)
            if packet.is_corrupt:
                self._damage.torn.add(seconds)
            if is_sequential and packet.pos is not None:
                gap = 0 if expected_position is None else packet.pos - expected_position
                if gap > _UNEXPLAINED_BYTES:
                    self._damage.skipped_bytes.add(seconds, gap)
                expected_position = packet.pos + packet.size
            if not packet.size:
                continue
            if packet.stream_index == self.video.index:
                self._pictures += 1
                yield packet
            elif packet.stream_index in self.tracks:
                self.tracks.take(packet)
        self._end(last_end)

    def _all_packets(self) -> Iterator[av.Packet[Any]]:
        """Every packet of the file, going on after errors of the container as long as it moves.

        Those without data say how long something lasts.
        """
        failures = 0
        while failures < _READ_ATTEMPTS:
            try:
                for packet in self.container.demux():
                    failures = 0 if packet.size else failures
                    if packet.size or packet.dts is not None:
                        yield packet
                self.fell_silent = self._pipe is not None and self._pipe.fell_silent
                return
            except IndexError:
                # streams came up after PyAV had counted them: all packets were read
                return
            except av.error.ExitError:
                self.fell_silent = True
                return
            except av.FFmpegError:
                if failures == 0:
                    self._damage.unread.add(None)
                failures += 1

    def _end(self, last_end: float) -> None:
        """Say how long the last picture lasts, and whether something is missing."""
        if self._is_whole():
            stated = stated_end(self.container, self.video)
            if stated is not None and stated - self.start > self._last_start:
                # durations of packets follow the order of decoding in MP4
                self.picture_end = float(stated - self.start)
            last_end = max(last_end, self.picture_end)
        is_known = any(name in self.container.format.name for name in _FORMATS_WITH_DURATION)
        if is_known and last_end + _EARLY_END_S < self.duration:
            self._damage.early_end = last_end, float(self.duration)

    def _is_whole(self) -> bool:
        """Whether all pictures of a file were met, as far as it says how many it has."""
        if self._source.is_live or self._damage.unread.count or self._damage.skipped_bytes.count:
            return False
        if "matroska" in self.container.format.name:
            return is_whole_matroska(Path(self._source.text))
        if self.container.format.name == "avi":
            return is_whole_avi(Path(self._source.text))
        return 0 < self.video.frames <= self._pictures

    def close(self) -> None:
        """Release the file or stream."""
        container: InputContainer | None = getattr(self, "container", None)
        if container is not None:
            container.close()
        if self._pipe is not None:
            self._pipe.close()
        if self._program is not None:
            self._program.close()


def _open_pipe(source: Source, stop: Callable[[], bool] | None) -> PipeInput:
    try:
        return PipeInput(source, stop)
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror}") from error


def _open(source: Source, pipe: PipeInput | None) -> InputContainer:
    if source.kind == "file":
        return _open_file(source)
    timeout = source.timeout if source.kind == "network" else None
    options = {**_LIVE_OPTIONS, **_OPTIONS_BY_SCHEME.get(source.scheme, {})}
    if source.listens:
        options |= _LISTENING.get(source.scheme, {"mode": "listener"})
    started = time.monotonic()
    try:
        return av.open(
            source.text if pipe is None else pipe,
            "r",
            format=source.format,
            options=open_options(source.kind, source.format, source.max_pixels),
            container_options=options,
            **TAGS_AS_BYTES,
            buffer_size=_PIPE_BUFFER_BYTES,
            timeout=None if timeout is None else (timeout, timeout),
        )
    except (OSError, av.FFmpegError) as error:
        # some protocols call it a broken stream when they are told that it took too long
        if timeout is not None and time.monotonic() - started >= timeout:
            raise InputError(f"{source.name} did not answer within {timeout:g} s") from error
        raise InputError(_why_unreadable(source, pipe, error)) from error


def _why_unreadable(source: Source, pipe: PipeInput | None, error: OSError | av.FFmpegError) -> str:
    if pipe is not None and not pipe.head:
        if pipe.fell_silent:
            return f"{source.name} did not answer within {source.timeout:g} s"
        return f"{source.name} ends before its first byte"
    is_garbled = isinstance(error, (av.error.EOFError, av.error.InvalidDataError))
    if is_garbled and pipe is not None and pipe.head[4:8] in _MP4_BOXES:
        return _index_at_end(source.name)
    if isinstance(error, av.error.EOFError):
        return f"{source.name} ends before its first frame"
    if isinstance(error, av.error.ArgumentError):
        return f"{source.name} {_FOREIGN}"
    if isinstance(error, av.error.InvalidDataError):
        hint = "; a pipe carries y4m, mpegts or matroska" if pipe is not None else ""
        return f"{source.name} is not a video that can be read{hint}"
    return f"{source.name} cannot be opened: {error.strerror or error}"


def _index_at_end(name: str) -> str:
    return (
        f"{name} is an MP4 with its index (moov) at the end, which a pipe cannot go forward to and "
        "come back from; give it as a file, or remux it first with "
        "ffmpeg -i IN.mp4 -c copy -movflags +faststart OUT.mp4"
    )


def _open_file(source: Source, options: dict[str, str] | None = None) -> InputContainer:
    path = Path(source.text)
    # of os.path, which has an answer for names that no file system takes, too
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a video file")
    try:
        # An absolute path cannot be taken for a protocol, as "clip:1.mp4" would be.
        return av.open(
            str(path.resolve()),
            "r",
            format=source.format,
            options=open_options("file", source.format, source.max_pixels) | (options or {}),
            **TAGS_AS_BYTES,
        )
    except av.error.PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied") from error
    except av.error.EOFError as error:
        raise InputError(f"{path} ends before its first frame") from error
    except av.FFmpegError as error:
        size = path.stat().st_size
        if isinstance(error, av.error.ArgumentError):
            raise InputError(f"{path} ({size} bytes) {_FOREIGN}") from error
        raise InputError(
            f"{path} ({size} bytes) is not a video that can be read: {error.strerror}"
        ) from error


def _stated_size(source: Source, video: VideoStream) -> tuple[int, int]:
    """Width and height that a stream says it has, (0, 0) if it does not say."""
    codec: Any = video.codec_context
    if source.kind != "file" or codec.width:
        return codec.width, codec.height
    # Where the first picture was refused, FFmpeg forgets what the header said.
    with _open_file(source, NO_DECODER) as container:
        if video.index < len(container.streams):
            codec = container.streams[video.index].codec_context
        return getattr(codec, "width", 0), getattr(codec, "height", 0)


def _picture_stream(container: InputContainer, name: str) -> VideoStream:
    kind = container.format.name
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        held = " and ".join(sorted({stream.type for stream in container.streams}))
        raise InputError(f"{name} holds no video, only {held or 'a header with 0 streams'}")
    stream = streams[0]
    if kind == "image2" or kind.endswith("_pipe"):
        raise InputError(f"{name} is a still image, not a video")
    codec_context: Any = stream.codec_context
    if codec_context is None:
        raise InputError(f"{name} holds video in a format that this FFmpeg cannot decode")
    if codec_context.name in _TEXT_CODECS:
        raise InputError(f"{name} is text, not a video")
    return stream
