"""Reading video files: frames, times, orientation, colours, damage, refusals, memory."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.video_samples import (
    LOSSLESS,
    Pixels,
    add_sound,
    decode,
    gradient,
    make_video,
    noise,
    packets,
    scramble,
)

import stillframe
from stillframe.errors import InputError
from stillframe.video import Frame, VideoReader
from stillframe.video.timing import InputClock

PACKAGE = Path(stillframe.__file__).parent
RGB: dict[str, Any] = {"codec": "libx264rgb", "pixel_format": "rgb24", "options": LOSSLESS}


def read(path: Path) -> list[Frame]:
    with VideoReader(path) as reader:
        return list(reader)


def difference(first: Pixels, second: Pixels) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


def test_frames_come_in_order_with_their_pixels_and_times(tmp_path: Path) -> None:
    frames = [noise(index) for index in range(20)]
    path = make_video(tmp_path / "a.mp4", frames, **RGB)
    with VideoReader(path) as reader:
        got = list(reader)
        assert (reader.width, reader.height, reader.rotation) == (64, 48, 0)
        assert (reader.fps, reader.frames_estimate, reader.companions.sounds) == (25.0, 20, ())
        assert reader.damage is None
    assert len(got) == 20
    for index, frame in enumerate(got):
        assert frame.pixels.dtype == np.uint8
        assert frame.pts * reader.time_base == Fraction(index, 25)
        assert np.array_equal(frame.pixels, frames[index])


def test_a_reader_has_one_position_and_ends_when_closed(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", [gradient(index) for index in range(6)])
    with VideoReader(path) as reader:
        first = next(iter(reader))
        second = next(iter(reader))
        assert second.pts > first.pts
    assert list(reader) == []
    assert (reader.width, reader.height) == (64, 48)


def test_variable_frame_rate_times_are_the_files_own(tmp_path: Path) -> None:
    pts = [0, 17, 500, 501, 502, 4000, 4100, 9001]
    path = make_video(
        tmp_path / "a.mp4",
        [gradient(index) for index in range(8)],
        options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"},
        time_base=Fraction(1, 15_000),
        pts=pts,
    )
    stored = [seconds for seconds, _ in packets(path, "video")]
    assert stored != sorted(stored), "the sample has no B-frames"
    with VideoReader(path) as reader:
        assert [frame.pts * reader.time_base * 15_000 for frame in reader] == pts


def test_frames_that_change_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    """Two transport streams in a row: another size, and times that start again."""
    small = make_video(tmp_path / "a.ts", [gradient(index) for index in range(60)])
    large = make_video(tmp_path / "b.ts", [gradient(index, 128, 96) for index in range(60)])
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    got = read(both)
    assert len(got) >= 115
    assert all(frame.pixels.shape == (48, 64, 3) for frame in got)
    assert difference(got[-1].pixels, gradient(59)) < 6
    steps = np.diff([frame.pts for frame in got])
    assert steps.min() > 0
    assert steps.max() * 25 < 90_000 * 12


@pytest.mark.parametrize(
    ("given", "repaired"),
    [
        ([0, 40, 80, 120], [0, 40, 80, 120]),
        ([0, 40, 40, 80], [0, 40, 41, 80]),
        ([0, 80, 40, 120], [0, 80, 81, 120]),
        ([0, None, 90, None], [0, 40, 90, 130]),
        ([None, None, None], [0, 40, 80]),
        ([5000, 5040, 0, 40, 80], [5000, 5040, 5080, 5120, 5160]),
        ([-20, 20, 60], [0, 20, 60]),
    ],
)
def test_times_are_repaired(given: list[int | None], repaired: list[int]) -> None:
    clock = InputClock(Fraction(1, 1000), 25.0)
    assert [clock(pts) for pts in given] == repaired


def test_times_count_from_the_earliest_stream(tmp_path: Path) -> None:
    pts = [90_000 * 3600 + 3600 * index for index in range(10)]
    frames = [gradient(index) for index in range(10)]
    path = make_video(tmp_path / "a.ts", frames, time_base=Fraction(1, 90_000), pts=pts)
    assert decode(path)[0][0] >= 3600
    with VideoReader(path) as reader:
        assert [frame.pts * reader.time_base for frame in reader] == [
            Fraction(index, 25) for index in range(10)
        ]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_corrupt_middle_is_skipped_and_told(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    whole = make_video(tmp_path / f"a{suffix}", [noise(index) for index in range(60)], codec=codec)
    sound = read(whole)
    with VideoReader(scramble(whole, 0.5, 0.6)) as reader:
        got = list(reader)
        damage = reader.damage
    assert 40 <= len(got) <= 60
    assert damage is not None
    assert " s" in damage
    assert "\n" not in damage
    if suffix == ".mkv":
        assert "bytes made no sense" in damage
    if suffix == ".mp4":
        assert f"{60 - len(got)} packets could not be decoded between 1." in damage
    for index in (0, -1):
        # AVI counts frames instead of timing them: what follows a loss is early there.
        assert got[index].pts == sound[index].pts or suffix == ".avi"
        assert np.array_equal(got[index].pixels, sound[index].pixels)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_cut_short_is_read_to_its_end_and_told(tmp_path: Path, suffix: str) -> None:
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    frames = [noise(index) for index in range(60)]
    path = make_video(tmp_path / f"a{suffix}", frames, container_options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader:
        count = len(list(reader))
        assert 20 <= count <= 40
        assert reader.damage is not None
        assert "the file ends at 1." in reader.damage
        assert "of 2.40 s" in reader.damage


def test_a_sound_file_reports_no_damage_while_whole_files_are_read(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv", ".mov", ".ts"):
        path = make_video(
            tmp_path / f"a{suffix}",
            [noise(index) for index in range(30)],
            sound="aac",
            sound_seconds=2.0,
        )
        with VideoReader(path) as reader:
            assert len(list(reader)) == 30
            assert (suffix, reader.damage) == (suffix, None)


def unusable(folder: Path, kind: str) -> Path:
    """A file of the kind that must be refused."""
    path = folder / {"text": "a.txt", "image": "a.png", "sound": "a.wav", "no frames": "a.mkv"}.get(
        kind, "a.mp4"
    )
    if kind == "folder":
        path.mkdir()
    elif kind in ("text", "text named mp4"):
        path.write_text("the quick brown fox\n" * 200)
    elif kind == "nothing":
        path.touch()
    elif kind == "image":
        make_video(path, [gradient()], codec="png", pixel_format="rgb24")
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            add_sound(container, container.add_stream("pcm_s16le", rate=48_000), 0.2)
    elif kind == "no frames":
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height = 64, 48
            container.start_encoding()
    elif kind == "only damage":
        return scramble(make_video(path, [noise(index) for index in range(30)]), 0.01, 0.93)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("text", "is text"),
        ("text named mp4", "4000 bytes"),
        ("nothing", "0 bytes"),
        ("image", "still image"),
        ("sound", "only audio"),
        ("no frames", "before its first frame"),
        ("only damage", "could not be decoded"),
    ],
)
def test_what_is_not_a_video_is_refused_in_one_sentence(
    tmp_path: Path, kind: str, words: str
) -> None:
    path = unusable(tmp_path, kind)
    with pytest.raises(InputError, match=words) as caught:
        VideoReader(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 15), (64, 15)])
def test_pictures_under_16_pixels_are_refused_with_their_size(
    tmp_path: Path, width: int, height: int
) -> None:
    frames = [gradient(0, width, height)]
    path = make_video(tmp_path / "a.mkv", frames, codec="ffv1", pixel_format="bgr0")
    with pytest.raises(InputError, match=f"{width}x{height} pixels.*16x16"):
        VideoReader(path)


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    """An MP3 with an ID3 picture, whose bytes are written by hand."""
    cover = make_video(tmp_path / "c.png", [gradient()], codec="png", pixel_format="rgb24")
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        add_sound(container, container.add_stream("libmp3lame", rate=48_000), 0.5)
    body = b"\0image/png\0\3\0" + cover.read_bytes()
    picture = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(picture) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + picture + path.read_bytes())
    with av.open(str(path)) as sound:
        assert {stream.type for stream in sound.streams} == {"audio", "video"}
    with pytest.raises(InputError, match="holds no video"):
        VideoReader(path)


# The package itself imports torch, whose memory is not the question here.
RESIDENT = """
import sys, types
package = types.ModuleType("stillframe")
package.__path__ = [sys.argv[1]]
sys.modules["stillframe"] = package
from stillframe.video import VideoReader, VideoWriter

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

with VideoReader(sys.argv[2]) as reader:
    writer = None
    if len(sys.argv) > 4:
        size = reader.width, reader.height
        writer = VideoWriter(sys.argv[4], *size, reader.time_base, reader.fps, audio_from=reader)
    for count, frame in enumerate(reader, 1):
        if writer is not None:
            writer.write(frame.pixels, frame.pts)
        if count == int(sys.argv[3]):
            before = resident()
    after = resident()
    if writer is not None:
        writer.close()
print(count, after - before)
"""


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 frames, which are 27 MB as pixels."""
    pictures = [gradient(index) for index in range(30)] * 100
    path = tmp_path_factory.mktemp("long") / "a.mov"
    return make_video(path, pictures, options={"preset": "ultrafast"})


def growth(path: Path, settled: int, *output: Path) -> int:
    """Bytes by which a process grows that reads (and copies) a file, after `settled` frames."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(PACKAGE), str(path), str(settled), *map(str, output)],
        capture_output=True,
        text=True,
        check=True,
    )
    frames, grown = map(int, done.stdout.split())
    assert frames > 5 * settled
    return grown


def test_memory_does_not_grow_while_reading(long_video: Path) -> None:
    assert growth(long_video, 500) < 6_000_000


def test_memory_does_not_grow_while_writing(long_video: Path, tmp_path: Path) -> None:
    assert growth(long_video, 500, tmp_path / "out.mp4") < 6_000_000


def test_sound_that_nobody_takes_is_not_kept(tmp_path: Path) -> None:
    """Two minutes are 23 MB."""
    pictures = [gradient(index) for index in range(30)] * 4
    second = Fraction(1)
    path = make_video(
        tmp_path / "a.mov", pictures, time_base=second, sound="pcm_s16le", sound_seconds=120
    )
    assert growth(path, 20) < 6_000_000


def test_tags_in_another_encoding_are_no_obstacle(tmp_path: Path) -> None:
    """A Latin-1 title, as old programs wrote it, is no UTF-8."""
    path = make_video(tmp_path / "a.mkv", [gradient(index) for index in range(3)])
    with av.open(str(path)) as old, av.open(str(tmp_path / "b.mkv"), "w") as new:
        new.metadata["title"] = "Caf#"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    tagged = tmp_path / "b.mkv"
    tagged.write_bytes(tagged.read_bytes().replace(b"Caf#", b"Caf\xe9"))
    assert b"Caf\xe9" in tagged.read_bytes()
    assert len(read(tagged)) == 3
