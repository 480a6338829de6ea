"""Where videos end: the last picture's duration, and sound that lies behind it in the file."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.video_samples import decode, gradient, make_video, noise, packets

from stillframe.video import Sink, Source, VideoReader, VideoWriter

MILLISECOND = Fraction(1, 1000)
# seconds: a recording of a screen on which little happens
UNEVEN = [0, 0.04, 0.08, 0.5, 1.0]
END = 4.0


def copy(source: Path, target: Path, frames: int | None = None) -> None:
    """Source to target, frames and sound."""
    with VideoReader(source, max_frames=frames) as reader:
        size = reader.width, reader.height
        with VideoWriter(target, *size, reader.time_base, reader.fps, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts, frame.duration)


def length(path: Path) -> float:
    """Seconds that the file says it lasts."""
    with av.open(str(path)) as container:
        return float(container.duration or 0) / av.time_base


def uneven(path: Path, codec: str = "libx264", pixel_format: str = "yuv420p") -> Path:
    """The recording, with durations in it: made by PyAV's muxer and not by the code under test."""
    tick = Fraction(1, 100) if path.suffix == ".gif" else MILLISECOND
    ticks = [round(seconds / tick) for seconds in (*UNEVEN, END)]
    with av.open(str(path), "w") as container:
        # zero latency, so that the last packet in the file is that of the last picture
        options = {"tune": "zerolatency"} if codec == "libx264" else {}
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.time_base = tick
        coded: list[av.Packet[Any]] = []
        for index, start in enumerate(ticks[:-1]):
            frame = av.VideoFrame.from_ndarray(gradient(4 * index), format="rgb24")
            frame.pts, frame.time_base = start, tick
            coded += stream.encode(frame)
        for packet, (start, end) in zip(
            [*coded, *stream.encode(None)], pairwise(ticks), strict=True
        ):
            packet.duration = end - start
            container.mux(packet)
    assert length(path) == pytest.approx(END, abs=0.01)
    return path


@pytest.mark.parametrize("source", [".mp4", ".mkv", ".webm", ".gif"])
def test_frames_of_a_file_say_how_long_they_are_shown(tmp_path: Path, source: str) -> None:
    path = uneven(tmp_path / f"a{source}", *codec_of(source))
    with VideoReader(path) as reader:
        frames = list(reader)
        times = [float(frame.pts * reader.time_base) for frame in frames]
        shown = [float((frame.duration or 0) * reader.time_base) for frame in frames]
        assert reader.damage is None
    assert times == pytest.approx(UNEVEN)
    assert shown == pytest.approx(np.diff([*UNEVEN, END]))


def codec_of(suffix: str) -> tuple[str, str]:
    kinds = {".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}
    return kinds.get(suffix, ("libx264", "yuv420p"))


@pytest.mark.parametrize("source", [".mp4", ".mkv", ".gif"])
@pytest.mark.parametrize("target", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"])
def test_a_file_lasts_as_long_as_its_source(tmp_path: Path, source: str, target: str) -> None:
    """Also where B-frames put the last packet before the last picture."""
    path = uneven(tmp_path / f"a{source}", *codec_of(source))
    out = tmp_path / f"out{target}"
    copy(path, out)
    tolerance = 0.04 if target == ".avi" else 0.001
    assert length(out) == pytest.approx(END, abs=tolerance)
    with VideoReader(out) as reader:
        frames = list(reader)
        ends = [float((frame.pts + (frame.duration or 0)) * reader.time_base) for frame in frames]
        assert reader.damage is None
    assert len(frames) == len(UNEVEN)
    assert ends == pytest.approx([*UNEVEN[1:], END], abs=tolerance / 2 + 0.001)


def test_a_duration_in_the_header_alone_is_that_of_the_last_picture(tmp_path: Path) -> None:
    """Recorders write how long a Matroska file lasts, and not how long its last picture does."""
    path = make_video(
        tmp_path / "a.mkv",
        [gradient(index) for index in range(26)],
        options={"tune": "zerolatency"},
    )
    data = path.read_bytes()
    at = data.index(bytes.fromhex("448988")) + 3
    assert struct.unpack(">d", data[at : at + 8]) == (1040.0,)
    tag = b"00:00:01.040000000"
    assert data.count(tag) == 1
    data = data[:at] + struct.pack(">d", 4000.0) + data[at + 8 :]
    for stated in (data, data.replace(tag, b"00:00:04.000000000")):
        path.write_bytes(stated)
        with VideoReader(path) as reader:
            last = list(reader)[-1]
            seconds = float((last.pts + (last.duration or 0)) * reader.time_base)
            assert seconds == pytest.approx(4.0, abs=0.001)
            assert reader.damage is None
    copy(path, tmp_path / "out.mp4")
    assert length(tmp_path / "out.mp4") == pytest.approx(4.0, abs=0.001)


def test_pictures_without_times_all_last_as_long(tmp_path: Path) -> None:
    frames = [gradient(index) for index in range(20)]
    path = make_video(tmp_path / "a.h264", frames)
    with VideoReader(path) as reader:
        got = list(reader)
        times = [float(frame.pts * reader.time_base) for frame in got]
        rate = reader.fps
    copy(path, tmp_path / "out.mp4")
    assert times == pytest.approx([index / rate for index in range(20)])
    assert length(tmp_path / "out.mp4") == pytest.approx(20 / rate, abs=0.001)


@pytest.mark.parametrize("format", ["mpegts", "flv"])
def test_a_stream_without_durations_shows_the_last_picture_again(
    tmp_path: Path, format: str
) -> None:
    path = uneven(tmp_path / "a.mkv")
    out = tmp_path / "out.bin"
    with out.open("wb") as file, VideoReader(path) as reader:
        sink = Sink("-", "pipe", format, file.fileno())
        with VideoWriter(sink, 64, 48, reader.time_base, reader.fps) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts, frame.duration)
            nominal = 1 / reader.fps
    shown = decode(out)
    assert len(shown) == len(UNEVEN) + 1
    assert float(shown[-1][0] - shown[0][0]) + nominal == pytest.approx(END, abs=0.002)
    assert np.abs(shown[-1][1].astype(int) - shown[-2][1]).mean() < 2


def test_a_file_cut_short_does_not_last_to_its_promised_end(tmp_path: Path) -> None:
    """What was lost is no reason to show what came before it for longer."""
    cut: list[tuple[str, dict[str, str]]]
    cut = [("a.mkv", {}), ("a.mp4", {"movflags": "+faststart"}), ("a.avi", {})]
    for name, options in cut:
        frames = [noise(index) for index in range(60)]
        codec = "mpeg4" if name == "a.avi" else "libx264"
        path = make_video(tmp_path / name, frames, codec=codec, container_options=options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with VideoReader(path) as reader:
            last = list(reader)[-1]
            assert float((last.duration or 0) * reader.time_base) < 0.2
            assert reader.damage is not None


# Muxers that put sound behind the pictures: how, and with which codecs.
BEHIND: dict[str, tuple[str, dict[str, str], str, str]] = {
    "fragments": (".mp4", {"movflags": "frag_keyframe+empty_moov"}, "libx264", "aac"),
    "chunks": (".mp4", {"chunk_duration": "1000000"}, "libx264", "aac"),
    "transport": (".ts", {"muxdelay": "2"}, "libx264", "aac"),
    "ogg": (".ogv", {"page_duration": "2000000"}, "libvpx", "libopus"),
}


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("frames", [1, 24, 40])
def test_sound_lasts_as_long_as_the_first_frames(tmp_path: Path, kind: str, frames: int) -> None:
    suffix, muxing, codec, sound = BEHIND[kind]
    path = make_video(
        tmp_path / f"a{suffix}",
        [gradient(index) for index in range(75)],
        codec=codec,
        options={"g": "75"},
        container_options=muxing,
        sound=sound,
        sound_seconds=3.0,
    )
    out = tmp_path / "out.mkv"
    copy(path, out, frames)
    pictures, heard = decode(out), packets(out, "audio")
    assert len(pictures) == frames
    assert pictures[0][0] <= 0.1
    ends = [seconds for seconds, _ in heard[1:]]
    step = ends[-1] - ends[-2] if len(ends) > 1 else 0.0214
    late = float(pictures[0][0])
    assert frames / 25 - 0.001 <= heard[-1][0] + step - late <= frames / 25 + 2 * step
    # nothing is left out on the way; the first packet of a fragmented file may be a long one
    assert np.diff([seconds for seconds, _ in heard[1:]]).max(initial=0) < 0.03


def test_asking_for_more_frames_than_there_are_keeps_all_sound(tmp_path: Path) -> None:
    frames = [gradient(index) for index in range(25)]
    path = make_video(tmp_path / "a.mp4", frames, sound="aac", sound_seconds=2.0)
    copy(path, tmp_path / "out.mp4", 100)
    assert len(packets(tmp_path / "out.mp4", "audio")) == len(packets(path, "audio"))


def test_a_sample_has_its_sound_behind_its_pictures(tmp_path: Path) -> None:
    """The test of the test: who stops with the last picture has too little."""
    suffix, muxing, codec, sound = BEHIND["fragments"]
    path = make_video(
        tmp_path / f"a{suffix}",
        [gradient(index) for index in range(75)],
        codec=codec,
        options={"g": "75"},
        container_options=muxing,
        sound=sound,
        sound_seconds=3.0,
    )
    seen, heard = count(), 0
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.stream.type == "audio":
                heard += 1
            elif packet.decode() and next(seen) >= 24:
                break
    assert heard * 1024 / 48_000 < 0.5


def test_a_pipe_stops_its_sound_there_as_well(tmp_path: Path) -> None:
    suffix, muxing, codec, sound = BEHIND["transport"]
    path = make_video(
        tmp_path / f"a{suffix}",
        [gradient(index) for index in range(75)],
        codec=codec,
        container_options=muxing,
        sound=sound,
        sound_seconds=3.0,
    )
    met: list[float] = []
    with path.open("rb") as file:
        source = Source("-", "pipe", "mpegts", descriptor=file.fileno())
        with VideoReader(source, max_frames=24) as reader:
            reader.connect_audio(
                lambda packet: met.append(float((packet.pts or 0) * packet.time_base))
            )
            assert len(list(reader)) == 24
    assert 0.9 < max(met) < 1.1
