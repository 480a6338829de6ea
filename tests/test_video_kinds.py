"""Kinds of pictures that are not what a model wants: HDR and interlaced."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from tests.video_samples import Pixels, gradient, make_video

from stillframe.video import VideoReader
from stillframe.video.deinterlacing import Deinterlacer
from stillframe.video.tone import to_sdr

PQ, HLG, BT2020_PRIMARIES, BT2020_MATRIX = 16, 18, 9, 9


def make_raw(
    path: Path,
    picture: av.VideoFrame,
    codec: str = "ffv1",
    *,
    frames: int = 2,
    curve: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A file of one picture again and again, in its own pixel format."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = picture.width, picture.height
        stream.pix_fmt = picture.format.name
        if curve is not None:
            stream.codec_context.color_trc = curve
            stream.codec_context.color_primaries = BT2020_PRIMARIES
            stream.codec_context.colorspace = BT2020_MATRIX
            stream.codec_context.color_range = 1
        for index in range(frames):
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def grey(value: float) -> av.VideoFrame:
    """A 10-bit picture of one grey, given as R'G'B' in [0, 1]."""
    picture = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, level in zip(picture.planes, (round(64 + 876 * value), 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, level, "<u2").tobytes())
    return picture


def pq(nits: float) -> float:
    """SMPTE ST 2084, written once more."""
    root = (nits / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375)


def hlg(nits: float) -> float:
    """BT.2100's HLG for a screen of 1000 nits and a grey."""
    scene = (nits / 1000) ** (1 / 1.2)
    if scene <= 1 / 12:
        return math.sqrt(3 * scene)
    return 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


def shown(path: Path) -> Pixels:
    with VideoReader(path) as reader:
        return next(iter(reader)).pixels


@pytest.mark.parametrize(("curve", "value"), [(PQ, pq), (HLG, hlg)])
def test_hdr_white_is_white_and_what_is_darker_keeps_its_light(
    tmp_path: Path, curve: int, value: Any
) -> None:
    """203 nits are the white of SDR; below it, a screen with gamma 2.4 shows the same light."""
    levels = {}
    for nits in (0, 1, 10, 50, 100, 150, 203, 400, 1000):
        path = make_raw(tmp_path / f"{nits}.mkv", grey(value(nits)), curve=curve)
        pixels = shown(path)
        assert np.ptp(pixels) <= 1
        levels[nits] = float(pixels.mean())
    for nits in (0, 1, 10, 50, 100, 150):
        assert levels[nits] == pytest.approx(255 * (nits / 203) ** (1 / 2.4), abs=1.5)
    assert levels[203] >= 245
    assert levels[203] < levels[400] <= levels[1000] <= 255
    assert levels[1000] >= 254


@pytest.mark.parametrize(("curve", "name"), [(PQ, "PQ"), (HLG, "HLG"), (1, None)])
def test_hdr_is_told_once(tmp_path: Path, curve: int, name: str | None) -> None:
    path = make_raw(tmp_path / "a.mkv", grey(0.5), curve=curve, frames=5)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 5
        notes = reader.notes
    if name is None:
        assert notes == ()
        assert abs(shown(path).mean() - 127.5) < 1.5
    else:
        assert len(notes) == 1
        assert f"HDR ({name})" in notes[0]
        assert "tone-mapped" in notes[0]


def test_hdr_colours_are_those_of_libswscale_below_white() -> None:
    """A second derivation: FFmpeg's own colour conversion, which clips at white."""
    generator = np.random.default_rng(0)
    # dim and not too saturated: within BT.709 and below the knee
    nits = generator.uniform(20, 150, (48, 64, 1)) * generator.uniform(0.75, 1, (48, 64, 3))
    colours = np.vectorize(pq)(nits)
    frame = av.VideoFrame.from_ndarray((colours * 65535).astype(np.uint16), format="rgb48le")
    frame.color_trc, frame.color_primaries = PQ, BT2020_PRIMARIES
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = Graph()
    source = graph.add_buffer(width=64, height=48, format=frame.format, time_base=frame.time_base)
    scale = graph.add(
        "scale", "out_transfer=bt709:out_primaries=bt709:intent=relative_colorimetric"
    )
    form = graph.add("format", "rgb48le")
    source.link_to(scale)
    scale.link_to(form)
    form.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    converted: Any = graph.pull()
    theirs = converted.to_ndarray().astype(float) / 65535
    ours = to_sdr((colours * 65535).astype(np.uint16) / 65535, "PQ")
    assert np.abs(ours - theirs).max() * 255 < 1.5


def combed(first: int, second: int) -> av.VideoFrame:
    """A white bar on black that moved from one field to the next, yuv420p, 64x48."""
    planes = np.full((72, 64), 128, np.uint8)
    planes[:48] = 16
    planes[0:48:2, first : first + 16] = 235
    planes[1:48:2, second : second + 16] = 235
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def comb(pixels: Pixels) -> float:
    """How much lines differ from those two away less than from their neighbours."""
    grey = pixels.astype(float).mean(-1)
    near = np.abs(np.diff(grey, axis=0)).mean()
    far = np.abs(grey[2:] - grey[:-2]).mean()
    return float(near - far)


@pytest.mark.parametrize(("flags", "is_interlaced"), [("+ildct+ilme", True), ("0", False)])
def test_interlaced_frames_are_deinterlaced(
    tmp_path: Path, flags: str, is_interlaced: bool
) -> None:
    """The same combed picture, once said to be interlaced and once not."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.options = {"flags": flags, "qscale": "2", "top": "1"}
        for index in range(8):
            picture = combed(6 * index, 6 * index + 3)
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        said = [frame.interlaced_frame for frame in container.decode(video=0)]
    assert said == [is_interlaced] * 8
    with VideoReader(path) as reader:
        frames = list(reader)
        times = [frame.pts * reader.time_base for frame in frames]
    assert [float(time) for time in times] == pytest.approx([index / 25 for index in range(8)])
    # three columns at either end of the bar change from line to line
    combs = np.array([comb(frame.pixels) for frame in frames])
    woven = 6 / 64 * 219
    if is_interlaced:
        assert combs.max() < woven / 4
    else:
        assert combs.min() > woven * 0.75
    assert all(frame.pixels.max() > 200 for frame in frames)


def test_a_single_interlaced_frame_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    make_raw(path, combed(8, 24), "mpeg2video", frames=1, options={"flags": "+ildct+ilme"})
    with VideoReader(path) as reader:
        assert len(list(reader)) == 1


def test_progressive_frames_pass_at_once_and_as_they_are(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", [gradient(index) for index in range(6)], codec="ffv1")
    deinterlacer = Deinterlacer(Fraction(1, 1000))
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            assert deinterlacer.push(picture) == [picture]
    assert deinterlacer.flush() == []
