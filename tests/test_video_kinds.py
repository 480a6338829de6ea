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
from numpy.typing import NDArray
from tests.video_samples import Pixels, gradient, make_video

from stillframe.video import Source, VideoReader
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
        times = [frame.pts * reader.time_base for frame in reader]
        assert times == [Fraction(index, 25) for index in range(5)]
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


SHADES = (0, 64, 128, 255)


def transparent(lower: tuple[int, int, int] = (200, 30, 60)) -> NDArray[np.uint8]:
    """Four columns of one colour, from transparent to opaque: RGBA, 64x48."""
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., :3] = lower
    for index, shade in enumerate(SHADES):
        picture[:, 16 * index : 16 * index + 16, 3] = shade
    return picture


def make_transparent(path: Path, codec: str, pixel_format: str) -> Path:
    """A file of such pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        if codec.startswith("libvpx"):
            stream.codec_context.options = {"crf": "4", "b": "0", "auto-alt-ref": "0"}
            stream.metadata["alpha_mode"] = "1"
        for index in range(3):
            picture = av.VideoFrame.from_ndarray(transparent(), format="rgba")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("background", ["black", "white"])
@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "limit"),
    [
        ("a.mov", "png", "rgba", 1),
        ("a.mov", "qtrle", "argb", 1),
        ("a.mkv", "ffv1", "yuva444p", 4),
        ("a.webm", "libvpx-vp9", "yuva420p", 12),
        ("a.webm", "libvpx", "yuva420p", 14),
    ],
)
def test_transparent_pictures_are_shown_on_what_was_asked_for(
    tmp_path: Path, background: str, name: str, codec: str, pixel_format: str, limit: int
) -> None:
    path = make_transparent(tmp_path / name, codec, pixel_format)
    with VideoReader(Source.of(path, background=background)) as reader:
        frames = list(reader)
    assert len(frames) == 3
    level = {"black": 0, "white": 255}[background]
    for index, shade in enumerate(SHADES):
        # away from the edges, where coders blur
        shown = frames[0].pixels[8:40, 16 * index + 4 : 16 * index + 12].mean(axis=(0, 1))
        share = shade / 255
        right = np.array([200, 30, 60]) * share + level * (1 - share)
        assert np.abs(shown - right).max() <= limit, shade


def test_black_is_the_background_unless_asked(tmp_path: Path) -> None:
    path = make_transparent(tmp_path / "a.mov", "png", "rgba")
    assert shown(path)[:, :16].max() == 0
    with pytest.raises(ValueError, match="black or white, not 'pink'"):
        Source.of(path, background="pink")


def test_what_is_transparent_in_a_gif_shows_the_background(tmp_path: Path) -> None:
    """One of its colours may be transparent; written by hand, as FFmpeg's encoder avoids it."""
    colours = bytes([255, 0, 0, 0, 0, 255])
    codes = {0: 0, 1: 1}
    bits = "".join(
        f"{code:03b}"[::-1]
        for index in range(16 * 16)
        for code in ([4] if index % 2 == 0 else []) + [codes[index % 16 // 8]]
    )
    # a clear code before every other pixel keeps codes at three bits
    bits += f"{5:03b}"[::-1]
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    size = (16).to_bytes(2, "little") * 2
    frame = b"!\xf9\x04\x01\x0a\0\0\0" + b",\0\0\0\0" + size + b"\0\x02"
    frame += bytes([len(data)]) + data + b"\0"
    path = tmp_path / "a.gif"
    path.write_bytes(b"GIF89a" + size + b"\x80\0\0" + colours + frame * 2 + b";")
    for background, level in (("black", 0), ("white", 255)):
        with VideoReader(Source.of(path, background=background)) as reader:
            pixels = next(iter(reader)).pixels
        assert (pixels[:, :8] == level).all()
        assert (pixels[:, 8:] == [0, 0, 255]).all()
