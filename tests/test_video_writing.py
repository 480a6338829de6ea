"""Writing video files: times, colours, sound, completeness, refusals, a full disk, Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import FrameType

import av
import numpy as np
import pytest
from tests.video_samples import Pixels, decode, gradient, make_video, noise, packets

from stillframe.errors import OutputError
from stillframe.video import VideoReader, VideoWriter, check_output
from stillframe.video.timing import OutputClock
from stillframe.whole_file import write_whole

TICK = Fraction(1, 25)
_M_PERTURB = -6


def write(path: Path, frames: list[Pixels], codec: str | None = None, crf: int = 18) -> Path:
    height, width = frames[0].shape[:2]
    with VideoWriter(path, width, height, TICK, 25, codec=codec, crf=crf) as writer:
        for index, pixels in enumerate(frames):
            writer.write(pixels, index)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".m4v", ".mov", ".mkv", ".webm", ".avi"])
def test_every_container_gives_the_frames_back(tmp_path: Path, suffix: str) -> None:
    frames = [gradient(index) for index in range(12)]
    path = write(tmp_path / f"a{suffix}", frames)
    with VideoReader(path) as reader:
        got = list(reader)
        assert (reader.width, reader.height, reader.damage) == (64, 48, None)
        assert reader.fps == pytest.approx(25, rel=0.01)
    assert len(got) == 12
    assert [frame.pts * reader.time_base for frame in got] == [index * TICK for index in range(12)]
    for index, frame in enumerate(got):
        assert np.abs(frame.pixels.astype(int) - frames[index]).mean() < 5


def test_gif_gives_the_frames_back_on_its_own_grid(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    with VideoWriter(path, 63, 47, Fraction(1, 30), 30) as writer:
        for index in range(9):
            writer.write(gradient(index, 63, 47), index)
    assert (writer.width, writer.height) == (63, 47)
    with VideoReader(path) as reader:
        got = list(reader)
    assert [frame.pts * reader.time_base for frame in got] == [
        Fraction(round(Fraction(index * 100, 30)), 100) for index in range(9)
    ]
    for index, frame in enumerate(got):
        assert np.abs(frame.pixels.astype(int) - gradient(index, 63, 47)).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("base", [15_360, 90_000, 30_000, 1_000_000])
def test_variable_times_survive_exactly_with_b_frames(
    tmp_path: Path, suffix: str, base: int
) -> None:
    steps = np.random.default_rng(base).integers(1, base // 5, 40)
    pts = [7, *np.cumsum(steps).tolist()]
    path = tmp_path / f"a{suffix}"
    with VideoWriter(path, 64, 48, Fraction(1, base), 12.5) as writer:
        for index, tick in enumerate(pts):
            writer.write(gradient(index), tick)
    stored = [seconds for seconds, _ in packets(path, "video")]
    assert stored != sorted(stored), "the encoder made no B-frames"
    assert [seconds * base for seconds, _ in decode(path)] == pts


def test_times_move_to_the_nearest_free_tick_of_a_coarser_grid() -> None:
    clock = OutputClock(Fraction(1, 90_000), Fraction(1, 1000))
    pts = [0, 1, 2, 900, 3003, 6006, 9009]
    assert [clock(tick) for tick in pts] == [0, 1, 2, 10, 33, 67, 100]
    same = OutputClock(Fraction(1, 1000), Fraction(1, 1000))
    assert [same(tick) for tick in pts] == pts


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4", [noise()] * 3).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@contextlib.contextmanager
def new_memory_holds(byte: int) -> Iterator[None]:
    """What glibc's malloc hands out is full of this byte."""
    libc = ctypes.CDLL(None)
    # more than a byte, so that 0xFF, whose complement is 0, does not switch it off
    assert libc.mallopt(_M_PERTURB, 0x100 | (byte ^ 0xFF))
    try:
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="fills memory with glibc's malloc")
@pytest.mark.parametrize(("width", "height"), [(64, 48), (128, 48), (208, 128)])
def test_the_same_frames_make_the_same_file(tmp_path: Path, width: int, height: int) -> None:
    world = np.kron(noise(0, 40, 20), np.ones((16, 16, 1), np.uint8))
    frames = [world[i : i + height, 2 * i : 2 * i + width] for i in range(14)]
    files = set()
    for byte in (0x00, 0x1F, 0x3F, 0xAA, 0xFF):
        with new_memory_holds(byte):
            files.add(write(tmp_path / "a.mp4", frames).read_bytes())
    assert len(files) == 1


def test_a_written_array_may_be_reused(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.mp4", gradient()
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        for index in range(30):
            pixels[:] = index * 8
            writer.write(pixels, index)
    levels = [frame.mean() for _, frame in decode(path)]
    assert np.abs(np.array(levels) - np.arange(30) * 8).max() < 2


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        for index in range(20):
            writer.write(noise(index), index)
        assert not path.exists()
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["a.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def write_and_fail(path: Path) -> None:
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        for index in range(60):
            writer.write(noise(index), index)
        raise ZeroDivisionError


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for before in ([], ["a.mp4"]):
        with pytest.raises(ZeroDivisionError):
            write_and_fail(path)
        assert os.listdir(tmp_path) == before
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"


def test_closing_early_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        try:
            for index in range(1000):
                writer.write(gradient(index), index)
                if index == 29:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            writer.close()
            writer.close(keep=False)
    assert [seconds for seconds, _ in decode(path)] == [index * TICK for index in range(30)]
    with pytest.raises(ValueError, match="closed"):
        writer.write(gradient(), 30)


@pytest.mark.parametrize("delay", [0.02, 0.03, 0.05, 0.08, 0.11])
def test_ctrl_c_at_any_moment_tears_no_frame(tmp_path: Path, delay: float) -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    path, seen = tmp_path / "a.mp4", 0
    pictures = [noise(index) for index in range(50)]
    previous = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1))
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        writer.write(pictures[0], 0)
        timer.start()
        try:
            while True:
                seen += 1
                writer.write(pictures[seen % 50], seen)
        except KeyboardInterrupt:
            timer.join()
    signal.signal(signal.SIGUSR1, previous)
    assert os.listdir(tmp_path) == ["a.mp4"]
    got = decode(path)
    assert seen <= len(got) <= seen + 1
    assert [seconds for seconds, _ in got] == [index * TICK for index in range(len(got))]
    with VideoReader(path) as reader:
        assert len(list(reader)) == len(got)
        assert reader.damage is None


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes; writing more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
@pytest.mark.parametrize("missing", [1, 3000, 20_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, suffix: str, missing: int) -> None:
    """From a byte too few, met at the very end, to too few for the first frames.

    libx264 now and then makes packets of other sizes from the same frames at the same times, so
    that how much is too little would not be known.
    """
    codec = None if suffix == ".gif" else "mpeg4"
    frames = [noise(index) for index in range(12)]
    path = write(tmp_path / f"a{suffix}", frames, codec)
    size = path.stat().st_size
    path.unlink()
    with largest_file(size - missing), pytest.raises(OutputError, match=r"a\.\w+ could not be"):
        write(path, frames, codec)
    assert os.listdir(tmp_path) == []
    with largest_file(size):
        assert write(path, frames, codec).stat().st_size == size


def test_an_error_of_the_encoder_thread_reaches_the_caller(tmp_path: Path) -> None:
    frames = [noise(index) for index in range(50)] * 40
    writer = VideoWriter(tmp_path / "a.mkv", 64, 48, TICK, 25)
    with largest_file(10_000), contextlib.suppress(OutputError):
        for index, pixels in enumerate(frames):
            writer.write(pixels, index)
    assert 0 < index < len(frames) - 1
    with pytest.raises(OutputError, match="could not be written"):
        writer.write(frames[0], len(frames))
    writer.close(keep=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.txt", r"\.mp4, .*\.webm"),
        ("a", "no known video extension"),
        ("missing/a.mp4", "there is no folder .*missing"),
        ("folder.mp4", "is a folder"),
        ("source.mp4", "is the video being read"),
        ("link.mp4", "is the video being read"),
        ("device.mp4", "not a regular file"),
    ],
)
def test_unusable_outputs_are_refused_before_anything_is_made(
    tmp_path: Path, name: str, words: str
) -> None:
    source = make_video(tmp_path / "source.mp4", [gradient()])
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "device.mp4").symlink_to(os.devnull)
    before, data = sorted(os.listdir(tmp_path)), source.read_bytes()
    with VideoReader(source) as reader, pytest.raises(OutputError, match=words) as caught:
        VideoWriter(tmp_path / name, 64, 48, TICK, 25, audio_from=reader)
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match=words):
        check_output(tmp_path / name, source=source)
    assert sorted(os.listdir(tmp_path)) == before
    assert source.read_bytes() == data


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Root may write anywhere but in /proc."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")
    with pytest.raises(OutputError, match="not be written"):
        write(folder / "a.mp4", [gradient()])


def test_a_link_keeps_pointing_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "b.mp4", tmp_path / "a.mp4"
    link.symlink_to(target)
    write(link, [gradient()])
    assert link.is_symlink()
    assert len(decode(target)) == 1


def test_a_file_without_frames_is_not_made(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="0 frames"),
        VideoWriter(tmp_path / "a.mp4", 64, 48, TICK, 25),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for width, height, base, fps, crf in (
        (0, 48, TICK, 25, 18),
        (64, 48, Fraction(0), 25, 18),
        (64, 48, TICK, 0, 18),
        (64, 48, TICK, 25, 52),
    ):
        with pytest.raises(ValueError, match="must be"):
            VideoWriter(path, width, height, base, fps, crf=crf)
    with pytest.raises(ValueError, match="no video encoder named 'nonsense'"):
        VideoWriter(path, 64, 48, TICK, 25, codec="nonsense")
    with pytest.raises(ValueError, match=r"webm.*libx264"):
        VideoWriter(tmp_path / "a.webm", 64, 48, TICK, 25, codec="libx264")
    assert os.listdir(tmp_path) == []
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        writer.write(gradient(), 3)
        with pytest.raises(ValueError, match="3 does not follow 3"):
            writer.write(gradient(), 3)
        with pytest.raises(ValueError, match=r"\(48, 64, 3\), not uint8 \(64, 48, 3\)"):
            writer.write(gradient(0, 48, 64), 4)
        with pytest.raises(ValueError, match="not uint16"):
            writer.write(gradient().astype(np.uint16), 4)
        writer.write(gradient(), 4)
    assert writer.frames_written == len(decode(path)) == 2


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx265", ".mp4"), ("libsvtav1", ".mkv"), ("ffv1", ".mkv")]
)
def test_other_encoders_can_be_asked_for(tmp_path: Path, codec: str, suffix: str) -> None:
    frames = [gradient(index, 128, 96) for index in range(6)]
    path = write(tmp_path / f"a{suffix}", frames, codec)
    got = decode(path)
    assert [seconds for seconds, _ in got] == [index * TICK for index in range(6)]
    for (_, pixels), frame in zip(got, frames, strict=True):
        assert np.abs(pixels.astype(int) - frame).mean() < 5


@pytest.mark.parametrize("fps", [60, 75, 100, 144, 240])
def test_no_gif_frame_is_too_short_for_browsers(tmp_path: Path, fps: int) -> None:
    """Less than 20 ms are shown for 100."""
    path, count = tmp_path / "a.gif", fps // 2
    with VideoWriter(path, 64, 48, Fraction(1, fps), fps) as writer:
        for index in range(count):
            writer.write(gradient(index), index)
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size]
    shown = [float((packet.duration or 0) * packet.time_base) for packet in found]
    assert min(shown) >= 0.02
    assert sum(shown) == pytest.approx(0.5, abs=0.031)
    assert len(found) + writer.frames_left_out == count == writer.frames_written
    assert any("20 ms" in loss for loss in writer.losses)
    for packet in found:
        # each is where it would have been
        place = float((packet.pts or 0) * packet.time_base) * fps
        assert abs(place - round(place)) * 1000 / fps <= 5.1


def test_a_gif_of_fifty_a_second_has_all_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    with VideoWriter(path, 64, 48, Fraction(1, 50), 50) as writer:
        for index in range(20):
            writer.write(gradient(index), index)
    assert writer.losses == ()
    assert len(decode(path)) == 20


@pytest.mark.parametrize(("name", "length"), [("a", 255), ("a", 251), ("ä", 255), ("夏", 254)])
def test_names_as_long_as_file_systems_allow(tmp_path: Path, name: str, length: int) -> None:
    size = len(name.encode())
    whole = (length - len(".mp4")) // size
    path = tmp_path / (name * whole + "b" * (length - len(".mp4") - whole * size) + ".mp4")
    assert len(path.name.encode()) == length
    with VideoWriter(path, 64, 48, TICK, 25) as writer:
        writer.write(gradient(), 0)
        writer.write(gradient(1), 1)
    assert os.listdir(tmp_path) == [path.name]
    report = tmp_path / (path.stem + "s" * (255 - length) + ".txt")
    write_whole(report, [b"whole"])
    assert report.read_bytes() == b"whole"
    assert len(os.listdir(tmp_path)) == 2
