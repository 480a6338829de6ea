"""Videos that are no video files: numbered pictures, folders of them, animated WebP."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.video_samples import Pixels, gradient, make_video

from stillframe.errors import InputError, OutputError
from stillframe.video import Sink, Source, VideoReader, VideoWriter, check_output

TICK = Fraction(1, 25)


def pictures(folder: Path, names: list[str], **options: Any) -> list[Pixels]:
    """Pictures of those names, each a little bluer than the one before."""
    folder.mkdir(exist_ok=True)
    made = [gradient(index) for index in range(len(names))]
    for name, pixels in zip(names, made, strict=True):
        Image.fromarray(pixels).save(folder / name, **options)
    return made


def read(place: str | Path) -> list[Pixels]:
    with VideoReader(place) as reader:
        assert reader.frames_estimate is not None
        frames = list(reader)
        assert reader.fps == 25
        assert [frame.pts * reader.time_base for frame in frames] == [
            index * TICK for index in range(len(frames))
        ]
        assert [(frame.duration or 0) * reader.time_base for frame in frames] == [TICK] * len(
            frames
        )
        assert reader.damage is None
    return [frame.pixels for frame in frames]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("%04d.png", [f"{index:04d}.png" for index in range(1, 13)]),
        ("%04d.png", [f"{index:04d}.png" for index in range(9996, 10_004)]),
        ("shot_%d.png", [f"shot_{index}.png" for index in range(98, 104)]),
        ("%03d.v2.png", ["007.v2.png", "008.v2.png", "031.v2.png"]),
        ("a 100% %02d.png", ["a 100% 00.png", "a 100% 01.png"]),
    ],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_numbered_pictures_are_frames_in_order(
    tmp_path: Path, pattern: str, names: list[str], as_folder: bool
) -> None:
    folder = tmp_path / "50%d"
    made = pictures(folder, names)
    if not as_folder:
        pictures(folder, ["other.png", "1x.png", "x0001.png.txt.png"])
    got = read(folder if as_folder else folder / pattern)
    assert len(got) == len(made)
    for pixels, expected in zip(got, made, strict=True):
        assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("suffix", "limit"), [(".jpg", 6), (".bmp", 0), (".tif", 0), (".webp", 8), (".tga", 0)]
)
def test_pictures_of_other_kinds_are_read(tmp_path: Path, suffix: str, limit: int) -> None:
    made = pictures(tmp_path / "in", [f"{index}{suffix}" for index in range(3)])
    for pixels, expected in zip(read(tmp_path / "in"), made, strict=True):
        assert np.abs(pixels.astype(int) - expected).mean() <= limit


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    pictures(tmp_path / "in", [f"{index}.png" for index in range(4)])
    (tmp_path / "in" / "2.png").write_bytes(b"nothing")
    with VideoReader(tmp_path / "in") as reader:
        times = [frame.pts * reader.time_base for frame in reader]
        assert reader.damage is not None
        assert "0.08 s" in reader.damage
    assert times == [0, TICK, 3 * TICK]


def test_what_stands_for_no_pictures_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pictures(tmp_path / "mixed", ["a.png", "b.jpg"])
    for place, words in (
        (empty, "folder without pictures"),
        (empty / "%04d.png", "0 pictures"),
        (tmp_path / "missing" / "%04d.png", "cannot be read"),
        (tmp_path / "mixed", "2 kinds, .jpg, .png"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            VideoReader(place)
        assert "\n" not in str(caught.value)


def test_a_video_whose_name_looks_like_a_pattern_is_one(tmp_path: Path) -> None:
    path = make_video(tmp_path / "100%d.mp4", [gradient()] * 3)
    assert Source.of(path).kind == "file"
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3


def webp(path: Path, count: int = 5) -> list[Pixels]:
    """An animation that shows its pictures for 40, 50, 60 ... ms, a quarter of each transparent."""
    made = []
    for index in range(count):
        picture = np.full((48, 64, 4), 255, np.uint8)
        picture[..., :3] = gradient(8 * index)
        picture[:24, :32, 3] = 0
        made.append(picture)
    images = [Image.fromarray(picture) for picture in made]
    durations = [40 + 10 * index for index in range(count)]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, lossless=True, loop=0
    )
    return [picture[..., :3] for picture in made]


@pytest.mark.parametrize(("background", "level"), [("black", 0), ("white", 255)])
def test_an_animated_webp_is_read_with_its_times(
    tmp_path: Path, background: str, level: int
) -> None:
    path = tmp_path / "a.webp"
    made = webp(path)
    with VideoReader(Source.of(path, background=background)) as reader:
        frames = list(reader)
        times = [frame.pts * reader.time_base for frame in frames]
        shown = [(frame.duration or 0) * reader.time_base for frame in frames]
        assert (reader.width, reader.height, reader.frames_estimate) == (64, 48, 5)
        assert reader.fps == pytest.approx(5 / 0.3)
    assert [int(time * 1000) for time in times] == [0, 40, 90, 150, 220]
    assert [int(time * 1000) for time in shown] == [40, 50, 60, 70, 80]
    for frame, expected in zip(frames, made, strict=True):
        assert np.abs(frame.pixels[24:].astype(int) - expected[24:]).max() <= 1
        assert (frame.pixels[:24, :32] == level).all()


def test_a_webp_that_does_not_move_is_a_still_image(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.webp"])
    with pytest.raises(InputError, match="still image"):
        VideoReader(tmp_path / "a.webp")


def write(target: Path, count: int = 12) -> VideoWriter:
    with VideoWriter(target, 64, 48, TICK, 25) as writer:
        for index in range(count):
            writer.write(gradient(index), index)
    return writer


@pytest.mark.parametrize("folder", ["out", "50% of %d", "."])
def test_pictures_are_written_and_read_back_as_they_were(tmp_path: Path, folder: str) -> None:
    writer = write(tmp_path / folder / "%04d.png")
    assert (writer.width, writer.height, writer.losses) == (64, 48, ())
    assert sorted(os.listdir(tmp_path / folder)) == [f"{n:04d}.png" for n in range(1, 13)]
    got = read(tmp_path / folder / "%04d.png")
    for index, pixels in enumerate(got):
        assert np.array_equal(pixels, gradient(index))
    with av.open(str(tmp_path / folder / "0001.png")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "rgb24"


def test_pictures_appear_when_they_are_complete(tmp_path: Path) -> None:
    target = tmp_path / "out" / "%03d.png"
    with VideoWriter(target, 64, 48, TICK, 25) as writer:
        writer.write(gradient(), 0)
        assert [name for name in os.listdir(tmp_path / "out") if name[0] != "."] == []
    assert os.listdir(tmp_path / "out") == ["001.png"]


def fail(target: Path) -> None:
    with VideoWriter(target, 64, 48, TICK, 25) as writer:
        writer.write(gradient(), 0)
        raise ZeroDivisionError


def test_an_exception_leaves_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "new" / "%d.png")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept.txt").touch()
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "old" / "%d.png")
    assert os.listdir(tmp_path / "old") == ["kept.txt"]


def test_pictures_do_not_mix_with_others(tmp_path: Path) -> None:
    write(tmp_path / "out" / "%04d.png", 3)
    for name, words in (("%04d.png", "3 pictures"), ("%d.jpg", "extension")):
        with pytest.raises(OutputError, match=words):
            check_output(tmp_path / "out" / name)
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / "a" / "b" / "%04d.png")
    assert Sink.of(tmp_path / "out" / "%04d.png").kind == "file"


def test_gaps_between_times_are_told(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "%d.png", 64, 48, TICK, 25) as writer:
        for index in (0, 1, 5, 6):
            writer.write(gradient(index), index)
    assert writer.gaps == 1
    assert len(os.listdir(tmp_path)) == 4
