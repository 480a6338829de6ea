"""Streams: pipes, addresses and devices in; pipes and addresses out; and how they end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest
from tests.edit_fixtures import (
    busy_frames,
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.video_samples import Pixels, decode, make_video, noise, packets
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import InputError
from stillframe.jobs.edit import edit_file
from stillframe.jobs.outputs import check_outputs
from stillframe.jobs.report import Report
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Sink, Source, VideoReader

PROMPT = "oil painting"
WIDTH, HEIGHT = 64, 48
TICK = Fraction(1, 25)
HEADER = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C420mpeg2\n".encode()
PICTURE_BYTES = WIDTH * HEIGHT * 3 // 2
FRAME_BYTES = len(b"FRAME\n") + PICTURE_BYTES
COMMAND = [
    sys.executable,
    "-c",
    "from stillframe.cli import main; main()",
    "edit",
    "-",
    "-o",
    "-",
]
UNEVEN = [50, 51, 54, 55, 61, 62, 63, 77, 78, 79, 80, 91, 92, 93, 94, 160]


def raw(pixels: Pixels) -> bytes:
    """A frame as YUV4MPEG2 has it."""
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
    return b"FRAME\n" + np.asarray(frame.to_ndarray()).tobytes()


def y4m(count: int) -> bytes:
    return HEADER + b"".join(raw(pixels) for pixels in busy_frames(count))


def frames_of(stream: bytes) -> int:
    """How many frames a YUV4MPEG2 stream holds, if it holds nothing else."""
    header, _, body = stream.partition(b"\n")
    assert header.startswith(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 ".encode()), header[:100]
    assert len(body) % FRAME_BYTES == 0
    starts = range(0, len(body), FRAME_BYTES)
    assert all(body[start : start + 6] == b"FRAME\n" for start in starts)
    return len(starts)


def frames_in(stream: bytes) -> int:
    """How many frames a decoder finds in what has come so far."""
    try:
        with av.open(io.BytesIO(stream), "r") as container:
            return len(list(container.decode(video=0)))
    except av.FFmpegError:
        return 0


@contextlib.contextmanager
def feeding(data: bytes) -> Iterator[int]:
    """The reading end of a pipe into which somebody writes `data`."""
    out, into = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(into, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    yield out
    os.close(out)
    thread.join()


def stdin(descriptor: int, format: str | None = None) -> Source:
    return Source("-", "pipe", format, descriptor=descriptor)


def edited(
    pipe: CausalWanPipeline, data: bytes, target: Path, format: str, **options: Any
) -> Report:
    """What becomes of a stream that is piped in and out, into `target`."""
    into = os.open(target, os.O_CREAT | os.O_WRONLY)
    with feeding(data) as source:
        sink = Sink("-", "pipe", format, descriptor=into)
        report = edit_file(pipe, stdin(source), sink, prompt=PROMPT, **options)
    os.close(into)
    return report


def times(path: Path) -> list[Fraction]:
    return [seconds for seconds, _ in decode(path)]


@pytest.mark.parametrize("format", ["y4m", "mpegts", "matroska", "flv"])
def test_a_stream_comes_out_as_a_file_would(
    tiny_pipe: CausalWanPipeline, tmp_path: Path, format: str
) -> None:
    report = edited(tiny_pipe, y4m(30), tmp_path / "stream", format, crf=4, compare=True)
    (tmp_path / "in.y4m").write_bytes(y4m(30))
    edit_file(tiny_pipe, tmp_path / "in.y4m", tmp_path / "out.mkv", prompt=PROMPT, crf=4)
    assert (report.source, report.output) == ("standard input", "standard output")
    assert (report.frames_in, report.frames_out, report.fps_source) == (30, 30, 25)
    assert report.psnr_vs_full_db is not None
    assert not report.warnings
    seen, wanted = decode(tmp_path / "stream"), decode(tmp_path / "out.mkv")
    assert len(seen) == len(wanted) == 30
    for index, ((when, pixels), (_, expected)) in enumerate(zip(seen, wanted, strict=True)):
        assert float(when - seen[0][0]) == pytest.approx(index / 25, abs=5e-4)
        assert np.abs(pixels.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("format", "error"), [("mpegts", 1e-5), ("matroska", 5e-4), ("flv", 5e-4), ("y4m", None)]
)
def test_uneven_times_are_kept_or_told(
    tiny_pipe: CausalWanPipeline, tmp_path: Path, format: str, error: float | None
) -> None:
    source = make_video(tmp_path / "in.mkv", busy_frames(len(UNEVEN)), pts=UNEVEN, time_base=TICK)
    report = edited(tiny_pipe, source.read_bytes(), tmp_path / "out", format)
    seen = times(tmp_path / "out")
    assert len(seen) == len(UNEVEN)
    if error is None:
        gaps = sum(b - a > 1 for a, b in pairwise(UNEVEN))
        assert f"format without times: {gaps} gaps" in report.warnings[0]
    else:
        assert not report.warnings
        for when, tick in zip(seen, UNEVEN, strict=True):
            assert float(when - seen[0]) == pytest.approx((tick - UNEVEN[0]) / 25, abs=error)


def test_sound_goes_where_the_container_holds_it(
    tiny_pipe: CausalWanPipeline, tmp_path: Path
) -> None:
    frames = busy_frames(20)
    source = make_video(tmp_path / "in.ts", frames, sound="aac", sound_seconds=0.8)
    assert not edited(tiny_pipe, source.read_bytes(), tmp_path / "a.ts", "mpegts").warnings
    sounds = [data for _, data in packets(source, "audio")]
    assert [data for _, data in packets(tmp_path / "a.ts", "audio")] == sounds
    silent = edited(tiny_pipe, source.read_bytes(), tmp_path / "a.y4m", "y4m")
    assert "no sound: y4m streams cannot hold aac" in silent.warnings[0]
    raw_sound = make_video(tmp_path / "b.mkv", frames, sound="pcm_s16le", sound_seconds=0.8)
    report = edited(tiny_pipe, raw_sound.read_bytes(), tmp_path / "b.ts", "mpegts")
    assert "aac in place of pcm_s16le sound" in report.warnings[0]
    assert len(packets(tmp_path / "b.ts", "audio")) >= 0.8 * 48_000 / 1024
    assert len(decode(tmp_path / "b.ts")) == len(decode(tmp_path / "a.y4m")) == 20


@pytest.mark.parametrize(("format", "late"), [("y4m", 0), ("mpegts", 1), ("matroska", 1)])
def test_a_block_leaves_while_the_source_pauses(
    tiny_pipe: CausalWanPipeline, format: str, late: int
) -> None:
    """A decoder may wait for the start of the next frame to see the end of one."""
    block, (out, into), (back, away) = 12, os.pipe(), os.pipe()
    received, seen = bytearray(), []

    def watch() -> None:
        while data := os.read(back, 1 << 16):
            received.extend(data)

    def feed() -> None:
        with os.fdopen(into, "wb") as pipe:
            pipe.write(y4m(block))
            pipe.flush()
            for _ in range(1200):
                time.sleep(0.05)
                seen.append(frames_in(bytes(received)))
                if seen[-1] >= block - late:
                    return

    threads = [threading.Thread(target=watch), threading.Thread(target=feed)]
    for thread in threads:
        thread.start()
    sink = Sink("-", "pipe", format, descriptor=away)
    report = edit_file(tiny_pipe, stdin(out), sink, prompt=PROMPT)
    os.close(away)
    for thread in threads:
        thread.join()
    os.close(out)
    os.close(back)
    assert seen[-1] >= block - late
    assert frames_in(bytes(received)) == report.frames_out == block


def test_whoever_never_reads_does_not_keep_us(tiny_pipe: CausalWanPipeline) -> None:
    """More than a pipe holds; the reader is there, and sleeps."""
    back, away = os.pipe()
    full: list[float] = []

    def stop() -> bool:
        if not select.select([], [away], [], 0)[1]:
            full.append(time.monotonic())
        return bool(full) and time.monotonic() > full[0] + 0.5

    with feeding(y4m(120)) as source:
        sink = Sink("-", "pipe", "y4m", descriptor=away)
        report = edit_file(tiny_pipe, stdin(source), sink, prompt=PROMPT, stop=stop)
    assert time.monotonic() - full[0] < 15
    assert report.interrupted
    assert 0 < report.frames_out < 120
    assert "standard output takes nothing more" in report.warnings[-1]
    os.close(back)
    os.close(away)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends before its first byte"),
        (b"no video at all\n" * 500, "not a video that can be read"),
        (noise(0, 200, 200).tobytes(), "not a video that can be read"),
        (HEADER, "readable frame"),
        (HEADER + b"FRAME\n" + bytes(100), "readable frame"),
    ],
)
def test_what_is_not_a_video_is_refused_in_one_sentence(data: bytes, said: str) -> None:
    with feeding(data) as descriptor, pytest.raises(InputError, match=said) as caught:
        VideoReader(stdin(descriptor))
    assert str(caught.value).startswith("standard input ")
    assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_off_is_read_to_there() -> None:
    with (
        feeding(y4m(9) + b"FRAME\n" + bytes(700)) as descriptor,
        VideoReader(stdin(descriptor)) as reader,
    ):
        assert reader.frames_estimate is None
        assert [frame.pts * reader.time_base for frame in reader][:9] == [
            index * TICK for index in range(9)
        ]


def test_a_named_pipe_is_opened_once(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    feeder = threading.Thread(target=path.write_bytes, args=(y4m(5),))
    feeder.start()
    source = Source.of(path)
    check_outputs(source, tmp_path / "a.mp4")
    assert source.is_live
    with VideoReader(source) as reader:
        assert len(list(reader)) == 5
    feeder.join()


# the command


def start(*more: object, **streams: Any) -> subprocess.Popen[bytes]:
    command = [*COMMAND, *map(str, more), "--threads", "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


def said_by(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    with process.stderr as stream:
        said = stream.read().decode()
    process.wait(60)
    assert "Traceback" not in said
    return said


def pipes(process: subprocess.Popen[bytes]) -> tuple[BinaryIO, BinaryIO]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout  # type: ignore[return-value]


PRODUCER = """
import sys
import av, numpy as np
with av.open(sys.stdout.buffer, "w", format="mpegts") as container:
    stream = container.add_stream("libx264", rate=10, options={"tune": "zerolatency"})
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    for index in range(20):
        picture = np.full((64, 64, 3), index * 10, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))
"""
CONSUMER = """
import sys
import av
with av.open(sys.stdin.buffer) as container:
    frames = [(float(f.time), f.width, f.height) for f in container.decode(video=0)]
print(container.format.name, frames)
"""


@pytest.mark.timeout(120)
def test_three_programs_in_a_row() -> None:
    """With the bundled model."""
    producer = subprocess.Popen([sys.executable, "-c", PRODUCER], stdout=subprocess.PIPE)
    editor = start(
        *("--style", "oil", "--output-format", "mpegts"),
        stdin=producer.stdout,
        stdout=subprocess.PIPE,
    )
    assert producer.stdout is not None
    assert editor.stdout is not None
    producer.stdout.close()
    consumer = subprocess.run(
        [sys.executable, "-c", CONSUMER], stdin=editor.stdout, capture_output=True, check=True
    )
    editor.stdout.close()
    assert "standard output: 20 frames of 64x64" in said_by(editor)
    assert (producer.wait(10), editor.returncode) == (0, 0)
    name, frames = consumer.stdout.decode().split(" ", 1)
    seen = eval(frames)
    assert name == "mpegts"
    assert [size for _, *size in seen] == [[64, 64]] * 20
    for index, (when, *_) in enumerate(seen):
        assert when - seen[0][0] == pytest.approx(index / 10, abs=1e-4)


@contextlib.contextmanager
def standing_for(descriptor: int, other: int) -> Iterator[None]:
    """Inside, `descriptor` is what `other` is; the latter is closed."""
    before = os.dup(descriptor)
    os.dup2(other, descriptor)
    os.close(other)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def run_in_pipes(feed: Callable[[int, int], None], model: Path, *more: object) -> Any:
    """The command in this process, with pipes for standard input and output.

    Args:
        feed: writes to the first descriptor and reads from the second, in a thread of its own.
    """
    (out, into), (back, away) = os.pipe(), os.pipe()
    feeder = threading.Thread(target=feed, args=(into, back))
    feeder.start()
    arguments = ["edit", "-", "-o", "-", "--model", model, "--prompt", "oil", *more]
    with standing_for(0, out), standing_for(1, away):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    feeder.join()
    return result


def test_a_reader_that_leaves_ends_the_run(model_folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    def feed(into: int, back: int) -> None:
        with os.fdopen(into, "wb", buffering=0) as pipe:
            pipe.write(y4m(12))
            with os.fdopen(back, "rb") as video:
                assert video.read(len("YUV4MPEG2 ")) == b"YUV4MPEG2 "
            with contextlib.suppress(BrokenPipeError):
                pipe.write(y4m(200)[len(HEADER) :])

    result = run_in_pipes(feed, model_folder, "--report", report)
    assert result.exit_code == 141, result.output
    assert "standard output was closed by its reader" in result.stderr
    numbers = json.loads(report.read_text())
    assert numbers["interrupted"]
    assert 0 < numbers["frames_out"] < 200


def test_ctrl_c_while_the_producer_pauses(model_folder: Path) -> None:
    received, sent = bytearray(), []

    def feed(into: int, back: int) -> None:
        with os.fdopen(into, "wb") as pipe, os.fdopen(back, "rb") as video:
            pipe.write(y4m(16))
            pipe.flush()
            received.extend(video.read(12 * FRAME_BYTES))
            time.sleep(0.3)
            sent.append(time.monotonic())
            if len(received) == 12 * FRAME_BYTES:  # or else nobody may be waiting for it
                os.kill(os.getpid(), signal.SIGINT)
            received.extend(video.read())

    result = run_in_pipes(feed, model_folder)
    assert time.monotonic() - sent[0] < 10
    assert result.exit_code == 130, result.output
    assert frames_of(bytes(received)) == 12
    assert not result.stdout
    assert "standard output: 12 frames" in result.stderr
    assert "4 more frames had been read" in result.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"this is not a video\n" * 100, "is not a video"), (b"", "ends before its first byte")],
)
def test_garbage_leaves_stdout_empty(model_folder: Path, data: bytes, said: str) -> None:
    received = bytearray()

    def feed(into: int, back: int) -> None:
        with os.fdopen(into, "wb") as pipe:
            pipe.write(data)
        with os.fdopen(back, "rb") as video:
            received.extend(video.read())

    result = run_in_pipes(feed, model_folder)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"Error: standard input {said}")
    assert not received
    assert not result.stdout


def test_a_run_that_ends_by_itself_says_so_on_stderr(model_folder: Path, tmp_path: Path) -> None:
    received = bytearray()

    def feed(into: int, back: int) -> None:
        with os.fdopen(into, "wb") as pipe:
            pipe.write(y4m(14))
        with os.fdopen(back, "rb") as video:
            received.extend(video.read())

    map_path, report = tmp_path / "map.mp4", tmp_path / "report.json"
    result = run_in_pipes(feed, model_folder, "--map", map_path, "--report", report)
    assert result.exit_code == 0, result.output
    assert frames_of(bytes(received)) == len(decode(map_path)) == 14
    assert not result.stdout
    assert "standard output: 14 frames of 64x48" in result.stderr
    numbers = json.loads(report.read_text())
    assert (numbers["source"], numbers["frames_out"]) == ("standard input", 14)
    assert not numbers["interrupted"]


def test_nothing_but_video_reaches_stdout() -> None:
    code = """
import os, sys
from stillframe.video import Sink, video_on_stdout
with video_on_stdout(Sink.of("-")) as sink:
    print("printed")
    os.write(1, b"written\\n")
    os.write(sink.descriptor, b"video ")
print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "video after\n"
    assert sorted(done.stderr.split()) == ["printed", "written"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_index_at_the_end_is_named_with_its_cure(tmp_path: Path, suffix: str) -> None:
    pictures = [noise(index, 256, 192) for index in range(20)]
    path = make_video(tmp_path / f"a{suffix}", pictures)
    assert path.stat().st_size > 1 << 18, "FFmpeg goes back within what it has buffered"
    with feeding(path.read_bytes()) as end, pytest.raises(InputError) as caught:
        VideoReader(stdin(end))
    message = str(caught.value)
    assert "moov" in message
    assert "-movflags +faststart" in message
    assert "\n" not in message
    front = make_video(
        tmp_path / f"b{suffix}", pictures, container_options={"movflags": "+faststart"}
    )
    with feeding(front.read_bytes()) as end, VideoReader(stdin(end)) as reader:
        assert len(list(reader)) == 20


def test_a_source_without_sound_sends_no_more_than_the_frames_asked_for() -> None:
    """The pipe stays open, and whoever waits for more of it waits for ever."""
    out, into = os.pipe()
    os.write(into, y4m(6))
    try:
        with VideoReader(stdin(out, "yuv4mpegpipe"), max_frames=4) as reader:
            assert len(list(reader)) == 4
    finally:
        os.close(into)
        os.close(out)
