"""Sound, copied from a reader to a writer."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video_samples import decode, gradient, make_video, packets

from stillframe.video import VideoReader, VideoWriter

TICK = Fraction(1, 25)


def copy(source: Path, target: Path) -> VideoWriter:
    """Source to target, frames and sound."""
    with VideoReader(source) as reader:
        size = reader.width, reader.height
        with VideoWriter(target, *size, reader.time_base, reader.fps, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts, frame.duration)
    return writer


def test_sound_reaches_the_sink_once_and_from_the_start(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "a.mp4",
        [gradient(index) for index in range(50)],
        sound="aac",
        sound_seconds=2.0,
    )
    met: list[tuple[float, bytes]] = []
    with VideoReader(path) as reader:
        assert reader.companions.sounds
        reader.connect_audio(lambda p: met.append((float((p.pts or 0) * p.time_base), bytes(p))))
        assert len(list(reader)) == 50
    assert met == packets(path, "audio")


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [
        ("aac.mp4", "aac", ".mp4"),
        ("aac.mp4", "aac", ".mkv"),
        ("mp3.avi", "libmp3lame", ".mp4"),
        ("pcm.avi", "pcm_s16le", ".mp4"),
        ("opus.mkv", "libopus", ".webm"),
        ("ac3.ts", "ac3", ".mov"),
    ],
)
def test_sound_is_copied_unchanged_and_in_time(
    tmp_path: Path, source: str, codec: str, target: str
) -> None:
    path = make_video(
        tmp_path / source,
        [gradient(index) for index in range(50)],
        codec="mpeg4" if source.endswith(".avi") else "libx264",
        sound=codec,
        sound_seconds=2.5,
    )
    out = tmp_path / f"out{target}"
    assert copy(path, out).audio_dropped is None
    before, after = packets(path, "audio"), packets(out, "audio")
    assert [data for _, data in before] == [data for _, data in after]
    # The distance between sound and picture, whatever both count from.
    late = np.array([seconds for seconds, _ in before]) - float(decode(path)[0][0])
    later = np.array([seconds for seconds, _ in after]) - float(decode(out)[0][0])
    assert np.abs(late - later).max() <= 0.001
    with av.open(str(out)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 2.5 * 48_000


def test_sound_of_a_transport_stream_fits_into_mp4(tmp_path: Path) -> None:
    """AAC has a header on each packet there, which MP4 does not want."""
    frames = [gradient(index) for index in range(50)]
    path = make_video(tmp_path / "a.ts", frames, sound="aac", sound_seconds=2.0)
    copy(path, tmp_path / "out.mp4")
    before, after = packets(path, "audio"), packets(tmp_path / "out.mp4", "audio")
    assert len(before) == len(after) > 90
    assert all(old.endswith(new) for (_, old), (_, new) in zip(before, after, strict=True))


def test_sound_that_no_container_of_its_kind_holds_is_left_out_with_a_warning(
    tmp_path: Path,
) -> None:
    frames = [gradient(index) for index in range(10)]
    path = make_video(tmp_path / "a.mp4", frames, sound="aac", sound_seconds=0.5)
    out = tmp_path / "out.gif"
    with pytest.warns(UserWarning, match=r"no sound: \.gif files cannot hold aac"):
        writer = copy(path, out)
    assert writer.audio_dropped is not None
    with VideoReader(out) as reader:
        assert (len(list(reader)), reader.companions.sounds) == (10, ())
    out.unlink()
    with pytest.raises(UserWarning, match="no sound"):
        copy(path, out)
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_sound_that_starts_late_is_late_to_the_sample(tmp_path: Path) -> None:
    """Coarse picture times must not coarsen the start of the sound."""
    frames = [gradient(index) for index in range(25)]
    late = Fraction(12_345, 48_000)
    path = make_video(
        tmp_path / "a.mov",
        frames,
        container_options={"movie_timescale": "48000"},
        sound="pcm_s16le",
        sound_seconds=0.5,
        sound_start=float(late),
    )
    out = tmp_path / "out.mov"
    with VideoReader(path) as reader, VideoWriter(out, 64, 48, TICK, 25, audio_from=reader) as w:
        for index, frame in enumerate(reader):
            w.write(frame.pixels, index)
    assert packets(out, "audio")[0][0] == pytest.approx(float(late), abs=1e-5)
    assert decode(out)[0][0] == 0


def test_sound_whose_times_start_again_goes_on(tmp_path: Path) -> None:
    """Two transport streams in a row, as cameras and recorders make them."""
    frames = [gradient(index) for index in range(50)]
    path = make_video(tmp_path / "a.ts", frames, sound="mp2", sound_seconds=2.0)
    single = packets(path, "audio")
    path.write_bytes(path.read_bytes() * 2)
    out = tmp_path / "out.mp4"
    copy(path, out)
    double = packets(out, "audio")
    assert len(double) == 2 * len(single)
    steps = np.diff([seconds for seconds, _ in double])
    assert steps.max() == pytest.approx(1152 / 48_000, abs=1e-3)
    assert steps.min() == pytest.approx(1152 / 48_000, abs=1e-3)
    assert abs(double[-1][0] - float(decode(out)[-1][0])) < 0.1
