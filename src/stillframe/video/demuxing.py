"""Open a video file and take it apart into packets, once, from front to back.

Knows containers, which stream is the picture and which the sound, and where the file itself is
broken. Does not decode. Sound goes to a sink as it is met; without one it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from stillframe.errors import InputError
from stillframe.video.damage import Damage
from stillframe.video.timing import InputClock

__all__ = ["AudioSink", "Demuxer"]

AudioSink = Callable[["av.Packet[Any]"], None]

_MICROSECOND = Fraction(1, 1_000_000)
# FFmpeg opens text as video: these decoders draw characters.
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})
# Formats whose header states a duration; FFmpeg guesses that of others from the bit rate.
_FORMATS_WITH_DURATION = ("mp4", "matroska", "avi")
_EARLY_END_S = 0.5
# More than Matroska itself puts between two packets.
_UNEXPLAINED_BYTES = 2048
_READ_ATTEMPTS = 32


class Demuxer:
    """An open video file and its packets.

    Attributes:
        container: the open file.
        video: the picture stream: the first that is not cover art.
        audio: the first sound stream, None without sound.
        start: seconds at which the earliest stream begins.
        duration: seconds, 0 if unknown.

    Args:
        path: the file.
        damage: where losses are noted.

    Raises:
        InputError: the file is missing or not a video.
    """

    def __init__(self, path: Path, damage: Damage) -> None:
        self._damage = damage
        self._sink: AudioSink | None = None
        self._early: list[av.Packet[Any]] | None = []
        self._audio_clock: InputClock | None = None
        self.container = _open(path)
        try:
            self.video = _picture_stream(self.container, path)
        except InputError:
            self.container.close()
            raise
        self.audio: AudioStream | None = next(iter(self.container.streams.audio), None)
        self.start = (self.container.start_time or 0) * _MICROSECOND
        self.duration = (self.container.duration or 0) * _MICROSECOND

    def seconds(self, packet: av.Packet[Any]) -> float | None:
        """When the packet is shown or heard, from the file's start; None if it does not say."""
        stamp = packet.dts if packet.pts is None else packet.pts
        return None if stamp is None else float(stamp * packet.time_base - self.start)

    def connect_audio(self, sink: AudioSink | None) -> None:
        """Send sound to `sink` from now on, and first what was met while the file was probed."""
        self._sink = sink
        if sink is not None:
            for packet in self._early or ():
                sink(packet)
            self._early = None

    def end_of_probing(self) -> None:
        """Let go of sound that nobody asked for yet."""
        self._early = None

    def packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Packets of video that hold data, in file order; sound leaves by the sink on the way."""
        is_sequential = "matroska" in self.container.format.name
        expected_position: int | None = None
        last_end = 0.0
        for packet in self._all_packets():
            seconds = self.seconds(packet)
            if seconds is not None:
                last_end = max(last_end, seconds + float((packet.duration or 0) * packet.time_base))
            if packet.is_corrupt:
                self._damage.torn.add(seconds)
            if is_sequential and packet.pos is not None:
                gap = 0 if expected_position is None else packet.pos - expected_position
                if gap > _UNEXPLAINED_BYTES:
                    self._damage.skipped_bytes.add(seconds, gap)
                expected_position = packet.pos + packet.size
            if packet.stream_index == self.video.index:
                yield packet
            elif self.audio is not None and packet.stream_index == self.audio.index:
                self._hand_over(packet)
        self._note_early_end(last_end)

    def _all_packets(self) -> Iterator[av.Packet[Any]]:
        """Every packet with data, going on after errors of the container as long as it moves."""
        failures = 0
        while failures < _READ_ATTEMPTS:
            try:
                for packet in self.container.demux():
                    if packet.size:
                        failures = 0
                        yield packet
                return
            except av.FFmpegError:
                if failures == 0:
                    self._damage.unread.add(None)
                failures += 1

    def _hand_over(self, packet: av.Packet[Any]) -> None:
        if packet.dts is None:
            return
        if self._audio_clock is None:
            rate = 1 / ((packet.duration or 1024) * packet.time_base)
            start = round(self.start / packet.time_base)
            self._audio_clock = InputClock(packet.time_base, float(rate), start, lowest=None)
        delay = 0 if packet.pts is None else packet.pts - packet.dts
        packet.dts = self._audio_clock(packet.dts)
        packet.pts = packet.dts + delay
        if self._sink is not None:
            self._sink(packet)
        elif self._early is not None:
            self._early.append(packet)

    def _note_early_end(self, last_end: float) -> None:
        is_known = any(name in self.container.format.name for name in _FORMATS_WITH_DURATION)
        if is_known and last_end + _EARLY_END_S < self.duration:
            self._damage.early_end = last_end, float(self.duration)

    def close(self) -> None:
        """Release the file."""
        self._sink = None
        self.container.close()


def _open(path: Path) -> InputContainer:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video file")
    try:
        # An absolute path cannot be taken for a protocol, as "clip:1.mp4" would be.
        return av.open(str(path.resolve()), "r", metadata_errors="replace")
    except av.error.PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied") from error
    except av.error.EOFError as error:
        raise InputError(f"{path} ends before its first frame") from error
    except av.FFmpegError as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} ({size} bytes) is not a video that can be read: {error.strerror}"
        ) from error


def _picture_stream(container: InputContainer, path: Path) -> VideoStream:
    kind = container.format.name
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        held = " and ".join(sorted({stream.type for stream in container.streams}))
        raise InputError(f"{path} holds no video, only {held or 'a header with 0 streams'}")
    stream = streams[0]
    if kind == "image2" or kind.endswith("_pipe"):
        raise InputError(f"{path} is a still image, not a video")
    codec_context: Any = stream.codec_context
    if codec_context is None:
        raise InputError(f"{path} holds video in a format that this FFmpeg cannot decode")
    if codec_context.name in _TEXT_CODECS:
        raise InputError(f"{path} is text, not a video")
    return stream
