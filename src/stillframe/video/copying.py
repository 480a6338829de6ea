"""Sound, subtitles, chapters and tags into an open output: copied, or sound transcoded.

Decides which by the table of containers, and by asking the muxer. Knows what PyAV wants of streams.
"""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec import Codec
from av.container import OutputContainer
from av.filter import Graph
from av.stream import Stream
from numpy.typing import NDArray

from stillframe.video.companions import Companions, describe, stream_tags
from stillframe.video.containers import Container
from stillframe.video.library import TAGS_AS_BYTES, fraction

__all__ = ["PCM_RATE", "OutputTrack", "PcmTrack", "Plan", "make_plan"]

#: Samples a second of `PcmTrack`.
PCM_RATE = 48_000

_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_BITS_PER_CHANNEL = 80_000
_OPUS_RATE = 48_000
# QuickTime numbers languages, and FFmpeg knows these by their other ISO 639-2 code only.
_MOV_LANGUAGES = {
    "deu": "ger",
    "ell": "gre",
    "isl": "ice",
    "nld": "dut",
    "sqi": "alb",
    "zho": "chi",
}


class OutputTrack(Protocol):
    """Where packets of one stream of an input go."""

    def add(self, packet: av.Packet[Any]) -> None:
        """Take the next packet, with times that count as those of the pictures do."""

    def finish(self) -> None:
        """Write what is still held."""


class Plan(NamedTuple):
    """What becomes of the companions of a file's pictures in an output.

    Attributes:
        companions: all of them.
        ways: of each stream that is kept, by its index: an encoder, or None to copy it.
        has_chapters: whether chapters are kept.
        left_out, transcoded: what is, in words; without sound if that is left out altogether.
    """

    companions: Companions
    ways: dict[int, str | None]
    has_chapters: bool
    left_out: tuple[str, ...]
    transcoded: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no stream is kept."""
        return not self.ways

    @property
    def has_sound(self) -> bool:
        """Whether some sound is kept."""
        return any(stream.index in self.ways for stream in self.companions.sounds)

    @property
    def sound_time_base(self) -> Fraction | None:
        """Seconds per tick of the first sound that is kept."""
        kept = (stream for stream in self.companions.sounds if stream.index in self.ways)
        first = next(kept, None)
        return None if first is None else fraction(first.time_base)

    def without_tracks(self) -> Plan:
        """The same with no stream kept, for a muxer that does not take them together."""
        lost = tuple(describe(stream) for stream in self.companions.subtitles)
        return self._replace(ways={}, left_out=lost, transcoded=())

    def carry_out(self, output: OutputContainer) -> dict[int, OutputTrack]:
        """Add all that is kept to an output whose header is not yet written.

        Returns:
            where packets go, by the index of their stream in the input.
        """
        output.metadata.update(self.companions.tags)
        if self.has_chapters and self.companions.chapters:
            chapters: Any = list(self.companions.chapters)
            output.set_chapters(chapters)
        streams = [*self.companions.sounds, *self.companions.subtitles]
        kept = sorted((s for s in streams if s.index in self.ways), key=lambda s: s.index)
        return {stream.index: _track(output, stream, self.ways[stream.index]) for stream in kept}


def make_plan(container: Container, companions: Companions) -> Plan:
    """What a container can keep of what a file has; sound that it cannot hold is transcoded."""
    ways: dict[int, str | None] = {}
    left_out: list[str] = []
    transcoded: list[str] = []
    for stream in companions.sounds:
        encoder = container.encoder
        if len(ways) >= container.most_sounds:
            left_out.append(describe(stream))
        elif (container.has_late_sound or stream.index not in companions.late) and _holds(
            container, stream, container.sounds
        ):
            ways[stream.index] = None
        elif encoder is not None and stream.codec_context is not None:
            ways[stream.index] = encoder
            name = Codec(encoder, "w").canonical_name
            transcoded.append(f"{name} in place of {describe(stream)}")
        else:
            left_out.append(describe(stream))
    if not ways:
        # that there is no sound at all is told otherwise
        left_out.clear()
    for stream in companions.subtitles:
        if _holds(container, stream, container.subtitles):
            ways[stream.index] = None
        else:
            left_out.append(describe(stream))
    if companions.chapters and not container.has_chapters:
        left_out.append("chapters")
    left_out += container.lost_tags(companions.tags)
    left_out += companions.others
    return Plan(companions, ways, container.has_chapters, tuple(left_out), tuple(transcoded))


def _holds(container: Container, stream: Stream, codecs: frozenset[str] | None) -> bool:
    """Whether packets of a stream can be copied; asked of a muxer that writes nowhere."""
    name = "unknown" if stream.codec_context is None else stream.codec_context.name
    if codecs is not None and name not in codecs:
        return False
    nowhere = io.BytesIO()
    try:
        with av.open(nowhere, "w", format=container.format, **TAGS_AS_BYTES) as output:
            _template(output, stream)
            output.start_encoding()
    except (ValueError, TypeError, NotImplementedError, av.FFmpegError):
        return False
    return True


def _track(output: OutputContainer, stream: Stream, encoder: str | None) -> OutputTrack:
    if encoder is None:
        return CopiedTrack(output, stream)
    sound: Any = stream
    return TranscodedTrack(output, sound, encoder)


class CopiedTrack:
    """Packets as they are; one of sound that is not after the last is left out.

    Args:
        output: open, its header not yet written.
        stream: of an open input.
    """

    def __init__(self, output: OutputContainer, stream: Stream) -> None:
        self._output = output
        self._stream = _template(output, stream)
        self._least_step = 1 if stream.type == "audio" else 0
        self._last: int | None = None

    def add(self, packet: av.Packet[Any]) -> None:
        """See `OutputTrack`."""
        if packet.dts is None:
            return
        tick = round(packet.dts * packet.time_base / (self._stream.time_base or packet.time_base))
        if self._last is not None and tick < self._last + self._least_step:
            return
        self._last = tick
        packet.stream = self._stream
        self._output.mux(packet)

    def finish(self) -> None:
        """See `OutputTrack`."""


class TranscodedTrack:
    """Sound decoded and encoded anew; gaps become silence, as does what comes before a late start.

    Args:
        output: open, its header not yet written.
        stream: of an open input. Its decoder is used, and by nobody else.
        encoder: FFmpeg's name of an encoder.
    """

    def __init__(self, output: OutputContainer, stream: AudioStream, encoder: str) -> None:
        self._output = output
        self._decoder = stream.codec_context
        self._time_base = Fraction(stream.time_base or Fraction(1, stream.rate))
        self._graph: Graph | None = None
        layout: Any = stream.codec_context.layout
        self._layout = _USUAL_LAYOUTS.get(layout.nb_channels, "stereo")
        rates = Codec(encoder, "w").audio_rates
        self._rate = stream.rate if not rates or stream.rate in rates else _OPUS_RATE
        options = {"b": str(_BITS_PER_CHANNEL * min(layout.nb_channels, 2))}
        added: Any = output.add_stream(encoder, rate=self._rate, options=options)
        added.codec_context.layout = self._layout
        _label(output, added, stream)
        self._stream = added

    def add(self, packet: av.Packet[Any]) -> None:
        """See `OutputTrack`; a packet that does not decode leaves a gap."""
        with contextlib.suppress(av.error.InvalidDataError):
            for frame in self._decoder.decode(packet):
                self._encode(frame)

    def finish(self) -> None:
        """See `OutputTrack`."""
        with contextlib.suppress(av.error.InvalidDataError):
            for frame in self._decoder.decode(None):
                self._encode(frame)
        if self._graph is not None:
            self._graph.push(None)
            self._drain()
        self._output.mux(self._stream.encode(None))

    def _encode(self, frame: av.AudioFrame) -> None:
        if frame.pts is None:
            return
        frame.time_base = self._time_base
        if self._graph is None:
            self._graph = self._make(frame)
        self._graph.push(frame)
        self._drain()

    def _make(self, frame: av.AudioFrame) -> Graph:
        graph = Graph()
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format,
            layout=frame.layout,
            time_base=self._time_base,
        )
        fill = graph.add("aresample", "async=1:first_pts=0")
        form = self._stream.codec_context.format.name
        shape = f"sample_fmts={form}:sample_rates={self._rate}:channel_layouts={self._layout}"
        last = graph.add("aformat", shape)
        source.link_to(fill)
        fill.link_to(last)
        last.link_to(graph.add("abuffersink"))
        graph.configure()
        return graph

    def _drain(self) -> None:
        assert self._graph is not None
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frame: Any = self._graph.pull()
                self._output.mux(self._stream.encode(frame))


class PcmTrack:
    """Sound given as samples, 48,000 a second and stereo, without a gap; encoded.

    Args:
        output: open, its header not yet written.
        encoder: FFmpeg's name of an encoder.
    """

    def __init__(self, output: OutputContainer, encoder: str) -> None:
        self._output = output
        options = {"b": str(2 * _BITS_PER_CHANNEL)}
        stream: Any = output.add_stream(encoder, rate=PCM_RATE, options=options)
        stream.codec_context.layout = "stereo"
        self._stream = stream
        self._next = 0

    def add(self, samples: NDArray[np.int16]) -> None:
        """Take the next samples, (n, 2)."""
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = PCM_RATE, Fraction(1, PCM_RATE)
        frame.pts = self._next
        self._next += len(samples)
        self._output.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what is still held."""
        self._output.mux(self._stream.encode(None))


def _template(output: OutputContainer, stream: Stream) -> Stream:
    added = output.add_stream_from_template(stream)
    _label(output, added, stream)
    if stream.type == "audio":
        # AVI and WAV count channels without naming them; MP4 fails on that, only at the very end.
        codec: Any = added.codec_context
        channels = codec.layout.nb_channels
        if codec.layout.name == f"{channels} channels" and channels in _USUAL_LAYOUTS:
            codec.layout = _USUAL_LAYOUTS[channels]
    return added


def _label(output: OutputContainer, added: Stream, stream: Stream) -> None:
    added.metadata.clear()
    tags = stream_tags(stream)
    if output.format.name == "mov" and "language" in tags:
        tags["language"] = _MOV_LANGUAGES.get(tags["language"], tags["language"])
    added.metadata.update(tags)
    added.disposition = stream.disposition
