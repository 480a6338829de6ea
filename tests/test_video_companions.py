"""What goes along with the pictures: all sound tracks, subtitles, chapters, tags."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from tests.video_samples import add_sound, decode, gradient, make_video

from stillframe.video import Sink, VideoReader, VideoWriter

MILLISECOND = Fraction(1, 1000)
FRAMES = 50


def copy(source: Path, target: Path, frames: int | None = None) -> tuple[str, ...]:
    """Source to target with all that goes along; what the writer says of it."""
    with warnings.catch_warnings(), VideoReader(source, max_frames=frames) as reader:
        warnings.simplefilter("ignore")
        size = reader.width, reader.height
        with VideoWriter(target, *size, reader.time_base, reader.fps, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts, frame.duration)
    return writer.losses


def rich(path: Path, subtitles: str = "subrip", sound: str = "aac") -> Path:
    """Two seconds with two sound tracks, the second one default, subtitles, chapters and tags."""
    texts = [b"bonjour", b"au revoir"]
    if subtitles == "mov_text":
        texts = [len(text).to_bytes(2, "big") + text for text in texts]
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": "A walk", "date": "2024-05-01"})
        video: Any = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds: list[Any] = [container.add_stream(sound, rate=48_000) for _ in range(2)]
        for stream, language, disposition in zip(
            sounds, ("deu", "eng"), (0, Disposition.default), strict=True
        ):
            stream.metadata["language"] = language
            stream.disposition = disposition
        words: Any = container.add_mux_stream(subtitles)
        words.metadata["language"] = "fra"
        container.set_chapters([chapter(1, 0, 1000, "Out"), chapter(2, 1000, 2000, "Back")])
        container.start_encoding()
        add_sound(container, sounds[0], 2.0)
        add_sound(container, sounds[1], 2.0)
        for index, text in enumerate(texts):
            packet = av.Packet(text)
            packet.stream, packet.time_base = words, MILLISECOND
            packet.pts = packet.dts = 100 + 1000 * index
            packet.duration = 400
            container.mux(packet)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(gradient(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def chapter(number: int, start: int, end: int, title: str) -> Any:
    times = {"start": start, "end": end, "time_base": MILLISECOND}
    return {"id": number, "metadata": {"title": title}, **times}


def contents(path: Path) -> dict[str, Any]:
    """What a file has, by PyAV."""
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        found: dict[str, Any] = {
            "sounds": [
                (s.codec_context.name, language(s), default(s)) for s in container.streams.audio
            ],
            "subtitles": [s.metadata.get("language") for s in container.streams.subtitles],
            "chapters": [
                (c["metadata"]["title"], seconds(c, c["start"]), seconds(c, c["end"]))
                for c in container.chapters()
            ],
            "title": tags.get("title"),
            "date": tags.get("date"),
        }
        texts = [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in container.demux()
            if packet.stream.type == "subtitle" and packet.size and packet.pts is not None
        ]
        found["texts"] = [(time, text) for time, text in texts if text.strip(b"\0")]
    return found


def seconds(chapter: Any, ticks: int) -> float:
    return float(ticks * chapter["time_base"])


def language(stream: Any) -> str | None:
    """In one of the two codes that ISO 639-2 has for it."""
    code = stream.metadata.get("language")
    return "deu" if code == "ger" else code


def default(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.default)


@pytest.mark.parametrize(
    ("source", "target", "subtitles"),
    [(".mkv", ".mkv", "subrip"), (".mp4", ".mp4", "mov_text"), (".mp4", ".mov", "mov_text")],
)
def test_everything_goes_along_where_the_container_holds_it(
    tmp_path: Path, source: str, target: str, subtitles: str
) -> None:
    path, out = rich(tmp_path / f"a{source}", subtitles), tmp_path / f"out{target}"
    assert copy(path, out) == ()
    before, after = contents(path), contents(out)
    assert len(before["sounds"]) == 2
    assert [s[1:] for s in before["sounds"]] == [("deu", False), ("eng", True)]
    assert before["title"] == "A walk"
    assert len(before["texts"]) == len(before["chapters"]) == 2
    assert [text for _, text in after["texts"]] == [text for _, text in before["texts"]]
    assert [time for time, _ in after["texts"]] == pytest.approx([0.1, 1.1], abs=0.002)
    for key in ("sounds", "subtitles", "chapters", "title", "date"):
        assert after[key] == before[key], key


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (".mp4", ["fra subrip subtitles"]),
        (".webm", ["fra subrip subtitles", "opus in place of deu aac sound"]),
        (".avi", ["fra subrip subtitles", "chapters"]),
        (".gif", ["no sound", "fra subrip subtitles", "chapters", "date", "title"]),
    ],
)
def test_what_the_container_does_not_hold_is_told(
    tmp_path: Path, target: str, words: list[str]
) -> None:
    path, out = rich(tmp_path / "a.mkv"), tmp_path / f"out{target}"
    losses = copy(path, out)
    for word in words:
        assert any(word in loss for loss in losses), (word, losses)
    assert all("\n" not in loss and out.name in loss for loss in losses)
    kept = contents(out)
    assert kept["subtitles"] == []
    assert len(kept["sounds"]) == (0 if target == ".gif" else 2)
    listed = {word for loss in losses for word in loss.replace(",", "").split()}
    assert (kept["title"] is None) == ("title" in listed)
    assert (kept["date"] is None) == ("date" in listed)
    assert bool(kept["chapters"]) != ("chapters" in listed)


def test_a_container_of_one_sound_track_gets_the_default_one(tmp_path: Path) -> None:
    """FLV, as a stream."""
    path, out = rich(tmp_path / "a.mkv", sound="aac"), tmp_path / "out.flv"
    with warnings.catch_warnings(), out.open("wb") as file, VideoReader(path) as reader:
        warnings.simplefilter("ignore")
        assert [s.metadata["language"] for s in reader.companions.sounds] == ["eng", "deu"]
        sink = Sink("-", "pipe", "flv", file.fileno())
        with VideoWriter(sink, 64, 48, reader.time_base, reader.fps, audio_from=reader) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts)
    assert any("without deu aac sound" in loss for loss in writer.losses)
    assert len(contents(out)["sounds"]) == 1


def onset(path: Path, rate: int = 48_000) -> tuple[float, float, float]:
    """Seconds at which sound begins and ends after the first picture, and its frequency."""
    parts, start = [], None
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("s16", "mono", rate)
        for frame in container.decode(audio=0):
            if start is None:
                start = float((frame.pts or 0) * (frame.time_base or 0))
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    wave = np.concatenate(parts).astype(float)
    loud = np.flatnonzero(np.abs(wave) > 3000)
    tone = wave[loud[0] : loud[-1]]
    crossings = np.count_nonzero(np.diff(np.sign(tone)) > 0)
    first = float(decode(path)[0][0])
    assert start is not None
    begin, end = start + loud[0] / rate - first, start + loud[-1] / rate - first
    return begin, end, crossings / (len(tone) / rate)


@pytest.mark.parametrize(
    ("source", "codec", "target", "expected"),
    [
        ("a.mp4", "aac", ".webm", "opus"),
        ("a.mkv", "ac3", ".webm", "opus"),
        ("a.mkv", "pcm_s16le", ".webm", "opus"),
        ("a.mkv", "libopus", ".avi", "mp3float"),
        ("a.mkv", "wavpack", ".mp4", "aac"),
    ],
)
@pytest.mark.parametrize("late", [0.0, 0.3])
def test_sound_is_transcoded_in_time(
    tmp_path: Path, source: str, codec: str, target: str, expected: str, late: float
) -> None:
    path = make_video(
        tmp_path / source,
        [gradient(index) for index in range(50)],
        sound=codec,
        sound_seconds=1.5,
        sound_start=late,
    )
    out = tmp_path / f"out{target}"
    (told,) = copy(path, out)
    assert "in place of" in told
    assert contents(out)["sounds"][0][0] == expected
    before, after = onset(path), onset(out)
    assert after[:2] == pytest.approx(before[:2], abs=0.03)
    assert after[2] == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("target", [".avi", ".mp4", ".mkv"])
def test_late_sound_stays_late(tmp_path: Path, target: str) -> None:
    """AVI has no times for sound: silence comes first there."""
    path = make_video(
        tmp_path / "a.mkv",
        [gradient(index) for index in range(50)],
        sound="libmp3lame",
        sound_seconds=1.5,
        sound_start=0.3,
    )
    out = tmp_path / f"out{target}"
    copy(path, out)
    assert onset(out)[:2] == pytest.approx(onset(path)[:2], abs=0.03)


def test_chapters_end_with_the_first_frames(tmp_path: Path) -> None:
    path, out = rich(tmp_path / "a.mkv"), tmp_path / "out.mkv"
    copy(path, out, 20)
    assert contents(out)["chapters"] == [("Out", 0.0, 0.8)]
    copy(path, out, 30)
    assert contents(out)["chapters"] == [("Out", 0.0, 1.0), ("Back", 1.0, 1.2)]


def test_tags_of_a_file_that_is_no_more_do_not_go_along(tmp_path: Path) -> None:
    path, out = rich(tmp_path / "a.mp4", "mov_text"), tmp_path / "out.mkv"
    copy(path, out)
    with av.open(str(out)) as container:
        keys = {key.lower() for key in container.metadata}
    assert not keys & {"major_brand", "minor_version", "compatible_brands"}
