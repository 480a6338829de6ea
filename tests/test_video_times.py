"""Times that files do not have, or have wrong: AVI's, and clocks that jump."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video_samples import gradient, make_video

from stillframe.video import VideoReader
from stillframe.video.timing import DecodingOrder, InputClock

MILLISECOND = Fraction(1, 1000)


@pytest.mark.parametrize("back", [900, 500, 200, 121])
def test_a_clock_that_starts_again_goes_on_at_the_last_rate(back: int) -> None:
    """Frames of 30 ms in a file that claims 25 a second."""
    first = list(range(0, 1200, 30))
    second = [first[-1] - back + 30 * index for index in range(24)]
    clock = InputClock(MILLISECOND, 25.0)
    got = [clock(time) for time in first + second]
    assert got == [30 * index for index in range(len(first) + len(second))]
    assert not clock.is_file_time


def test_a_clock_that_starts_again_by_little_squeezes_one_frame_at_most() -> None:
    first = list(range(0, 400, 40))
    second = [first[-1] - 40 + 40 * index for index in range(10)]
    clock = InputClock(MILLISECOND, 25.0)
    steps = np.diff([clock(time) for time in first + second])
    assert np.count_nonzero(steps != 40) <= 1
    assert steps.min() > 0


def test_slips_that_are_alone_move_nothing_else() -> None:
    given = [0, 40, 80, 60, 160, 200, 200, 280, 320, 240, 400]
    clock = InputClock(MILLISECOND, 25.0)
    got = [clock(time) for time in given]
    assert got == [0, 40, 80, 81, 160, 200, 201, 280, 320, 321, 400]
    assert clock.is_file_time


@pytest.mark.parametrize("frames", [24, 18])
def test_streams_of_under_a_second_in_a_row_keep_their_rate(tmp_path: Path, frames: int) -> None:
    """Transport streams whose times start again after less than a second."""
    path = make_video(
        tmp_path / "a.ts",
        [gradient(index) for index in range(frames)],
        sound="mp2",
        sound_seconds=frames / 25,
    )
    path.write_bytes(path.read_bytes() * 3)
    heard: list[float] = []
    with VideoReader(path) as reader:
        reader.connect_audio(lambda packet: heard.append(float((packet.pts or 0) * TS_TICK)))
        times = [float(frame.pts * reader.time_base) for frame in reader]
    assert len(times) >= 3 * frames - 3
    steps = np.diff(times)
    # a decoder may lose a picture where one stream is cut off by the next
    assert steps.min() == pytest.approx(0.04, abs=0.001)
    assert steps.max() <= 0.13
    assert np.diff(heard).min() > 0.02


TS_TICK = Fraction(1, 90_000)


@pytest.mark.parametrize(("codec", "bframes"), [("libx264", 3), ("libx264", 0), ("mpeg4", 2)])
def test_avi_times_are_even(tmp_path: Path, codec: str, bframes: int) -> None:
    options = {"x264-params": f"bframes={bframes}:b-adapt=0:scenecut=0"}
    frames = [gradient(index) for index in range(40)]
    path = make_video(
        tmp_path / "a.avi",
        frames,
        codec=codec,
        options=options if codec == "libx264" else {"bf": str(bframes), "b": "4000000"},
    )
    with av.open(str(path)) as container:
        types = {frame.pict_type for frame in container.decode(video=0)}
    assert (len(types) == 3) == (bframes > 0), "the sample has no B-frames"
    with VideoReader(path) as reader:
        got = list(reader)
        assert reader.fps == pytest.approx(25)
        assert reader.frames_estimate == 40
        times = [frame.pts * reader.time_base for frame in got]
        shown = [(frame.duration or 0) * reader.time_base for frame in got]
    assert times == [Fraction(index, 25) for index in range(40)]
    assert shown == [Fraction(1, 25)] * 40
    for index, frame in enumerate(got):
        # blue rises by 8 from one frame to the next
        assert abs(frame.pixels[..., 2].mean() - frames[index][..., 2].mean()) < 3


def test_an_avi_of_fine_ticks_has_its_true_rate(tmp_path: Path) -> None:
    """As `ffmpeg -c copy` makes them: a tick for each field or finer, most of them empty."""
    frames = [gradient(index) for index in range(40)]
    path = make_video(tmp_path / "a.avi", frames, time_base=Fraction(1, 100), pts=range(0, 160, 4))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].average_rate or 0) > 25
    with VideoReader(path) as reader:
        times = [float(frame.pts * reader.time_base) for frame in reader]
        assert reader.fps == pytest.approx(25, rel=0.02)
    assert times == pytest.approx([index / 25 for index in range(40)])


def test_what_decodes_to_nothing_takes_no_time_after_the_next_keyframe() -> None:
    order = DecodingOrder()
    shown: list[int | None] = []
    for index in range(30):
        order.decode(index, index % 10 == 0)
        if index == 13:
            order.fail()
        elif index != 4:
            shown.append(order.show(index % 10 == 0))
    assert shown == [0, 1, 2, 3, 4, *range(5, 9), *[t for t in range(10, 30) if t != 13]]


def test_a_damaged_avi_keeps_its_later_times(tmp_path: Path) -> None:
    frames = [gradient(index) for index in range(60)]
    path = make_video(tmp_path / "a.avi", frames, codec="mpeg4")
    data = path.read_bytes()
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size][20]
        at, size = found.pos or 0, found.size
    damaged = tmp_path / "b.avi"
    damaged.write_bytes(data[: at + 8] + bytes(size) + data[at + 8 + size :])
    with VideoReader(damaged) as reader:
        times = [frame.pts for frame in reader]
    # what follows a loss may be early there, but the decoder must not make it any earlier
    with av.open(str(damaged)) as container:
        counted = [packet.dts for packet in container.demux(video=0) if packet.size]
    assert times[-1] == counted[-1]
    assert len(set(counted) - set(times)) <= 1
