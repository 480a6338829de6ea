"""Encoders and muxers: pictures and what goes along with them in, an open file or stream out.

Knows what encoders and muxers want. Does not know whether the file may be written, when it is
complete, or what becomes of it after an error.
"""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec import Codec
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stillframe.video.companions import Companions, describe
from stillframe.video.containers import Container
from stillframe.video.copying import OutputTrack, PcmTrack, Plan, make_plan
from stillframe.video.library import TAGS_AS_BYTES
from stillframe.video.picture import FromRgb, tag_colours, tell_mpeg4_colours

__all__ = ["Encoder", "Picture"]

_COARSEST_TIMESCALE = 1000
_LAMBDA_PER_QSCALE = 118
# Who joins a stream late sees nothing before the next whole picture.
_LIVE_KEYFRAME_S = 2
_EVEN_FORMATS = ("yuv420", "yuvj420", "nv12", "p010")
# OpenCV's number of AVX-512F.
_AVX512F = 13


class Picture(NamedTuple):
    """What the pictures of a file have in common.

    Attributes:
        width, height: in pixels.
        grid: seconds per tick of their times.
        rate: frames per second, nominal.
        aspect: width of a pixel divided by its height.
        crf: quality on libx264's scale.
    """

    width: int
    height: int
    grid: Fraction
    rate: Fraction
    aspect: Fraction
    crf: int


class Encoder:
    """An open output: header written, pictures and sound accepted.

    Args:
        address: what FFmpeg opens: the path of a file, which is overwritten, or a stream.
        container: how.
        codec: FFmpeg's name of a video encoder.
        picture: size, times and quality; an odd size loses a row or column where the pixel format
            cannot hold it.
        companions: what an open input has beside its pictures.
        pcm: whether sound is given as samples instead, see `add_samples`.

    Attributes:
        width, height: of the pictures in the file.
        audio_dropped: why there is no sound, None if there is or there was none.
        left_out: what else of the companions is left out, in words.
        transcoded: what of them is transcoded, in words.

    Raises:
        ValueError: there is no such encoder, or the container does not take what it makes.
        av.FFmpegError: the file cannot be written.
    """

    def __init__(
        self,
        address: str,
        container: Container,
        codec: str,
        picture: Picture,
        companions: Companions,
        pcm: bool = False,
    ) -> None:
        self._pixel_format = _pixel_format(codec)
        even = self._pixel_format.startswith(_EVEN_FORMATS)
        self.width = picture.width - (picture.width % 2 if even else 0)
        self.height = picture.height - (picture.height % 2 if even else 0)
        self.audio_dropped: str | None = None
        self._picture, self._container, self._codec = picture, container, codec
        self._duration = max(container.least_ticks, round(1 / (picture.rate * picture.grid)))
        self._convert = FromRgb(self.width, self.height, picture.grid, self._pixel_format)
        self._durations: dict[int, int] = {}
        self._first_tick: int | None = None
        self._first_dts = self._end = 0
        self._last: av.VideoFrame | None = None
        self._late: av.Packet[Any] | None = None
        self._tracks: dict[int, OutputTrack] = {}
        plan = make_plan(container, companions)
        self._pcm: PcmTrack | None = None
        self._has_pcm = pcm and container.encoder is not None
        try:
            self._open(address, codec, plan)
        except (ValueError, av.FFmpegError) as error:
            if plan.is_empty or isinstance(error, OSError):
                raise
            plan = plan.without_tracks()
            self._open(address, codec, plan)
        self.left_out, self.transcoded = plan.left_out, plan.transcoded
        if companions.sounds and not plan.has_sound:
            kind = f"{Path(address).suffix} files"
            kind = kind if container.stream is None else f"{container.stream} streams"
            self.audio_dropped = f"{kind} cannot hold {describe(companions.sounds[0])}"

    def _open(self, address: str, codec: str, plan: Plan) -> None:
        options = _muxer_options(self._container, self._picture.grid, plan)
        form = self._container.format
        output = av.open(address, "w", format=form, container_options=options, **TAGS_AS_BYTES)
        try:
            self._video = self._add_video(output, codec)
            self._tracks = plan.carry_out(output)
            if self._has_pcm:
                self._pcm = PcmTrack(output, str(self._container.encoder))
            output.start_encoding()
        except BaseException:
            with contextlib.suppress(av.FFmpegError):
                output.close()
            raise
        self._output = output

    def _add_video(self, output: OutputContainer, codec: str) -> VideoStream:
        picture = self._picture
        is_live = self._container.stream is not None
        options = _quality(codec, picture.crf, is_live)
        stream: Any = output.add_stream(codec, rate=picture.rate, options=options)
        stream.width, stream.height = self.width, self.height
        stream.pix_fmt = self._pixel_format
        stream.codec_context.time_base = picture.grid
        stream.codec_context.sample_aspect_ratio = picture.aspect
        if is_live and codec != "rawvideo":
            stream.codec_context.gop_size = max(1, round(_LIVE_KEYFRAME_S * picture.rate))
        if self._pixel_format.startswith("yuv"):
            tag_colours(stream.codec_context, self.width, self.height)
        return stream

    def add(self, frame: av.VideoFrame) -> None:
        """Encode an rgb24 frame of the file's size, its pts in ticks of the grid.

        Its duration, in the same ticks, is that of the file's end if it is the last one; 0 for
        that of the nominal rate.
        """
        frame.time_base = self._picture.grid
        tick = frame.pts or 0
        self._first_tick = tick if self._first_tick is None else self._first_tick
        self._durations[tick] = frame.duration or self._duration
        self._end = tick + self._durations[tick]
        picture = self._convert(frame)
        if self._container.ending == "repeat":
            self._last = picture
        self._mux(self._video.encode(picture))

    def add_companion(self, packet: av.Packet[Any]) -> None:
        """Take a packet of sound or subtitles of the input."""
        track = self._tracks.get(packet.stream_index)
        if track is not None:
            track.add(packet)

    def add_samples(self, samples: NDArray[np.int16]) -> None:
        """Take the next samples of sound, (n, 2) at `copying.PCM_RATE`, from time 0 on."""
        if self._pcm is not None:
            self._pcm.add(samples)

    def finish(self) -> None:
        """Write what the encoder still holds, then the index."""
        if self._last is not None and self._end - (self._last.pts or 0) > 1.5 * self._duration:
            self._last.pts = self._end - self._duration
            self._mux(self._video.encode(self._last))
        self._mux(self._video.encode(None))
        if self._late is not None:
            decoded = (self._late.dts or 0) - self._first_dts
            left = self._end - (self._first_tick or 0) - decoded
            self._late.duration = max(self._late.duration or 0, left)
            self._output.mux(self._late)
        for track in self._tracks.values():
            track.finish()
        if self._pcm is not None:
            self._pcm.finish()
        self._output.close()

    def abandon(self) -> None:
        """Let go of the file in whatever state it is."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._output.close()

    def _tagged(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        """A packet that says its colours, where neither container nor encoder does."""
        data = bytes(packet) if self._codec == "mpeg4" and packet.is_keyframe else b""
        told = tell_mpeg4_colours(data, self.width, self.height)
        if told == data:
            return packet
        new: av.Packet[Any] = av.Packet(told)
        new.stream, new.time_base = self._video, packet.time_base
        new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
        new.is_keyframe = True
        return new

    def _mux(self, packets: list[av.Packet[Any]]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts or 0, self._duration)
            packet = self._tagged(packet)
            if self._container.ending == "sum":
                if self._late is None:
                    self._first_dts = packet.dts or 0
                else:
                    self._output.mux(self._late)
                self._late = packet
            else:
                self._output.mux(packet)


def _muxer_options(container: Container, grid: Fraction, plan: Plan) -> dict[str, str]:
    if container.format in ("mp4", "mov") and container.stream is None:
        # Moves the index to the front; lets late starts be as exact as the times themselves.
        scale = _movie_timescale(grid, plan.sound_time_base)
        return {"movflags": "+faststart", "movie_timescale": str(scale)}
    if container.stream is None:
        return {}
    # Everything leaves at once; sound that is missing holds pictures up for two seconds at most.
    options = {"flush_packets": "1", "max_interleave_delta": "2000000"}
    if container.format == "matroska":
        options |= {"live": "1", "cluster_time_limit": "0"}
    elif container.format == "flv":
        options["flvflags"] = "no_duration_filesize"
    return options


def _movie_timescale(grid: Fraction, sound: Fraction | None) -> int:
    """Ticks per second that hit every tick of the pictures, and of the sound if 31 bits allow."""
    scale = grid.denominator * -(-_COARSEST_TIMESCALE // grid.denominator)
    if sound is not None:
        common = math.lcm(scale, sound.denominator)
        scale = common if common < 2**31 else scale
    return scale


def _pixel_format(codec: str) -> str:
    """The pixel format to give an encoder: yuv420p, which plays everywhere, if it takes that.

    Otherwise all colours if it takes them, and the best 256 if not.
    """
    try:
        formats = [video_format.name for video_format in Codec(codec, "w").video_formats or ()]
    except ValueError as error:
        raise ValueError(f"there is no video encoder named {codec!r}") from error
    for preferred in ("yuv420p", "rgb24", "pal8"):
        if preferred in formats or not formats:
            return preferred
    return formats[0]


def _quality(codec: str, crf: int, is_live: bool) -> dict[str, str]:
    """Encoder options near `crf` on libx264's scale; none for encoders without a known scale."""
    if codec == "rawvideo":
        return {"chroma_sample_location": "left"}
    if codec == "libx264" and is_live:
        return {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
    if codec in ("libx264", "libx264rgb"):
        return {"crf": str(crf), "preset": "faster", **_repeatable_x264()}
    if codec == "libx265":
        return {"crf": str(min(51, crf + 3)), "x265-params": "log-level=none"}
    if codec == "libvpx-vp9":
        return {"crf": str(min(63, crf + 10)), "cpu-used": "4", "row-mt": "1"}
    if codec == "libsvtav1":
        return {"crf": str(min(63, crf + 12)), "preset": "8"}
    if codec == "mpeg4":
        quantiser = max(1, round(crf / 6))
        return {"flags": "+qscale", "global_quality": str(_LAMBDA_PER_QSCALE * quantiser)}
    return {}


def _repeatable_x264() -> dict[str, str]:
    """Options with which libx264 makes the same file of the same pictures.

    With AVX-512 its macroblock tree takes eight macroblocks at a time and reads past the last one
    of a picture whose width is no multiple of 128, where memory holds anything (core 165). With
    AVX2, which is as fast and what such a processor has, too, it stops at the last one. Streams
    have no macroblock tree.
    """
    import cv2

    return {"x264-params": "asm=avx2"} if cv2.checkHardwareSupport(_AVX512F) else {}
