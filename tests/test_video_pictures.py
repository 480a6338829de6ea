"""Pictures on their way in and out of video files: upright, in the right colours and sizes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.video_samples import LOSSLESS, Pixels, decode, gradient, make_video

from stillframe.video import VideoReader, VideoWriter

TICK = Fraction(1, 25)
RGB: dict[str, Any] = {"codec": "libx264rgb", "pixel_format": "rgb24", "options": LOSSLESS}


def read(path: Path) -> list[Pixels]:
    with VideoReader(path) as reader:
        return [frame.pixels for frame in reader]


def difference(first: Pixels, second: Pixels) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_display_matrix_is_applied(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """The matrix is made by FFmpeg from an angle; the expectation by numpy from the same angle."""
    stored = gradient(3)
    path = make_video(tmp_path / "a.mp4", [stored] * 3, turn=(degrees, mirrored), **RGB)
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    with VideoReader(path) as reader:
        frame = next(iter(reader))
        assert (reader.height, reader.width) == upright.shape[:2] == frame.pixels.shape[:2]
        if not mirrored:
            assert reader.rotation == -degrees % 360
    assert np.array_equal(frame.pixels, upright)
    assert frame.pixels.flags.c_contiguous


def test_pixels_that_are_not_square_stay_so_when_turned(tmp_path: Path) -> None:
    frames, aspect = [gradient()] * 2, Fraction(4, 3)
    flat = make_video(tmp_path / "a.mp4", frames, aspect=aspect)
    turned = make_video(tmp_path / "b.mp4", frames, aspect=aspect, turn=(90, False))
    with VideoReader(flat) as first, VideoReader(turned) as second:
        assert first.sample_aspect_ratio == 1 / second.sample_aspect_ratio == aspect


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix"),
    [
        ("ffv1", "yuv420p10le", ".mkv"),
        ("ffv1", "yuva420p", ".mkv"),
        ("ffv1", "yuv444p16le", ".mkv"),
        ("ffv1", "yuv411p", ".mkv"),
        ("ffv1", "bgr0", ".mkv"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("png", "rgba", ".mov"),
        ("libvpx-vp9", "yuv420p", ".webm"),
        ("mpeg4", "yuv420p", ".avi"),
        ("gif", "rgb8", ".gif"),
    ],
)
def test_pixel_formats_become_rgb(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str
) -> None:
    path = make_video(
        tmp_path / f"a{suffix}",
        [gradient(index) for index in range(4)],
        codec=codec,
        pixel_format=pixel_format,
        time_base=Fraction(1, 100) if suffix == ".gif" else Fraction(1, 25),
        pts=[0, 4, 8, 12] if suffix == ".gif" else None,
    )
    got = read(path)
    assert len(got) == 4
    for index, pixels in enumerate(got):
        limit = 24 if suffix == ".gif" else 6
        assert difference(pixels, gradient(index)) < limit


def test_grey_video_is_grey(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", [gradient()] * 2, codec="ffv1", pixel_format="gray")
    pixels = read(path)[0].astype(int)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(pixels) > 100


@pytest.mark.parametrize(("width", "height"), [(64, 48), (1280, 720)])
def test_an_untagged_matrix_is_taken_by_size(tmp_path: Path, width: int, height: int) -> None:
    """Grey levels of BT.601 and BT.709 written by hand; red must come back red at either size."""
    red, green, blue = (0.2126, 0.7152, 0.0722) if height > 576 else (0.299, 0.587, 0.114)
    colour = np.array([200.0, 60.0, 30.0])
    grey = colour @ [red, green, blue]
    planes = [16 + grey * 219 / 255]
    planes += [128 + 224 / 255 * (colour[2] - grey) / (2 * (1 - blue))]
    planes += [128 + 224 / 255 * (colour[0] - grey) / (2 * (1 - red))]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        picture = np.stack([np.full((height, width), level) for level in planes])
        frame = av.VideoFrame.from_ndarray(picture.round().astype(np.uint8), format="yuv444p")
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    got = read(path)[0].reshape(-1, 3)
    assert np.abs(got - colour).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize(("width", "height", "matrix"), [(64, 48, 6), (1280, 720, 1)])
def test_every_container_says_which_matrix_it_has(
    tmp_path: Path, suffix: str, width: int, height: int, matrix: int
) -> None:
    """Players take a file that does not say so for whatever they like."""
    path = tmp_path / f"a{suffix}"
    with VideoWriter(path, width, height, TICK, 25) as writer:
        for index in range(3):
            writer.write(gradient(index, width, height), index)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert (frame.colorspace, frame.color_range) == (matrix, 1)
            shown = frame.to_ndarray(format="rgb24").astype(int)
            assert np.abs(shown - gradient(0, width, height)).mean() < 8


@pytest.mark.parametrize(("width", "height", "matrix"), [(64, 48, 6), (1280, 720, 1)])
def test_colours_survive_and_are_declared(
    tmp_path: Path, width: int, height: int, matrix: int
) -> None:
    """The stored luma is checked against the formulas of BT.601 and BT.709."""
    picture = gradient(12, width, height)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width, height, TICK, 25, crf=0) as writer:
        writer.write(picture, 0)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        assert (context.colorspace, context.color_range) == (matrix, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        luma = np.asarray(frame.to_ndarray())[:height].astype(float)
    red, blue = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    expected = 16 + 219 / 255 * (picture @ [red, 1 - red - blue, blue])
    assert np.abs(luma - expected).mean() < 1
    with VideoReader(path) as reader:
        error = next(iter(reader)).pixels.astype(int) - picture
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.5
    assert np.abs(error).mean() < 2


def test_odd_sizes_lose_a_row_and_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 65, 49, TICK, 25) as writer:
        assert (writer.width, writer.height) == (64, 48)
        writer.write(gradient(0, 65, 49), 0)
    ((_, pixels),) = decode(path)
    assert np.abs(pixels.astype(int) - gradient(0, 65, 49)[:48, :64]).mean() < 4


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    path, aspect = tmp_path / "a.mp4", Fraction(16, 15)
    with VideoWriter(path, 64, 48, TICK, 25, sample_aspect_ratio=aspect) as writer:
        writer.write(gradient(), 0)
    with VideoReader(path) as reader:
        assert reader.sample_aspect_ratio == aspect
