"""Addresses and devices as sources and sinks: what they carry, how they end, their names."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.video_samples import gradient, noise
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import InputError, OutputClosedError, OutputError
from stillframe.video import Sink, Source, VideoReader, VideoWriter

WIDTH, HEIGHT = 64, 48
TICK = Fraction(1, 25)
UNEVEN = [50, 51, 54, 55, 61, 62, 63, 77, 78, 79, 80, 91, 92, 93, 94, 160]


def test_devices_are_read_by_their_format(tmp_path: Path) -> None:
    """FFmpeg's generator of test pictures is to it a device, too."""
    if "lavfi" not in av.formats_available:
        pytest.skip("this FFmpeg has no generator")
    source = Source.of("testsrc2=size=64x48:rate=10", "lavfi")
    assert source.kind == "device"
    with VideoReader(source) as reader:
        pictures = [next(iter(reader)) for _ in range(4)]
        assert (reader.fps, reader.width, reader.height) == (10, 64, 48)
    assert [frame.pts * reader.time_base for frame in pictures] == [
        Fraction(index, 10) for index in range(4)
    ]


# the network


@pytest.fixture(name="port")
def port_fixture() -> int:
    """One where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(name="silent_port")
def silent_port_fixture() -> Iterator[int]:
    """One where somebody listens and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp", "udp"])
def test_a_dead_server_is_given_up(silent_port: int, scheme: str) -> None:
    url = f"{scheme}://user:secret@127.0.0.1:{silent_port}/live"
    if scheme in ("tcp", "udp"):
        url = f"{scheme}://127.0.0.1:{silent_port}"
    started = time.monotonic()
    with pytest.raises(InputError, match=r"did not answer within 0\.4 s") as caught:
        VideoReader(Source.of(url, timeout=0.4))
    assert 0.4 <= time.monotonic() - started < 5
    assert "secret" not in str(caught.value)


def test_the_command_gives_up_a_dead_server(
    silent_port: int, model_folder: Path, tmp_path: Path
) -> None:
    arguments = [f"rtsp://127.0.0.1:{silent_port}/a", "-o", tmp_path / "a.mp4", "--prompt", "oil"]
    more = ["--model", model_folder, "--input-timeout", "0.4"]
    result = CliRunner().invoke(app, ["edit", *map(str, [*arguments, *more])])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: rtsp://127.0.0.1:{silent_port}/a did not answer")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_told(port: int) -> None:
    for url in (f"rtsp://127.0.0.1:{port}/a", f"tcp://127.0.0.1:{port}"):
        with pytest.raises(InputError, match="cannot be opened: Connection refused"):
            VideoReader(url)
    for url in (f"rtmp://127.0.0.1:{port}/a/key", f"tcp://127.0.0.1:{port}"):
        with pytest.raises(OutputError, match="could not be written: Connection refused") as caught:
            VideoWriter(url, WIDTH, HEIGHT, TICK, 25)
        assert "key" not in str(caught.value)


def test_what_is_no_rtmp_server_is_told() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail\r\n")
                connection.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"rtmp://127.0.0.1:{server.getsockname()[1]}/a/key"
        with pytest.raises(OutputError, match="no RTMP server"):
            VideoWriter(url, WIDTH, HEIGHT, TICK, 25)
        thread.join()


def _send(url: str, count: int, ended: Callable[[], bool]) -> None:
    """Send `count` frames, or as many as it takes, as soon as somebody listens."""
    for _ in range(600):
        with contextlib.suppress(OutputError), VideoWriter(url, WIDTH, HEIGHT, TICK, 25) as writer:
            for index in range(count):
                writer.write(gradient(index), UNEVEN[index] if count == 16 else index)
                if ended():
                    return
                time.sleep(0.01)  # a reader that gets no processor for a while misses datagrams
            return
        time.sleep(0.05)


def test_a_connection_carries_every_frame(port: int) -> None:
    url = f"tcp://127.0.0.1:{port}"
    sender = threading.Thread(target=_send, args=(url, 16, lambda: False))
    sender.start()
    with VideoReader(Source.of(f"{url}?listen=1", timeout=60)) as reader:
        seen = list(reader)
        assert not reader.fell_silent
    sender.join()
    assert [round((frame.pts - seen[0].pts) * reader.time_base * 25) for frame in seen] == [
        tick - UNEVEN[0] for tick in UNEVEN
    ]
    for index, frame in enumerate(seen):
        assert np.abs(frame.pixels.astype(int) - gradient(index)).mean() < 6


def test_datagrams_are_read_until_they_stop(port: int) -> None:
    url, done = f"udp://127.0.0.1:{port}", threading.Event()
    sender = threading.Thread(target=_send, args=(url, 5000, done.is_set))
    sender.start()
    with VideoReader(Source.of(url, timeout=4)) as reader:
        seen = [next(iter(reader)) for _ in range(20)]
        done.set()
        seen += list(reader)
        assert reader.fell_silent
    sender.join()
    steps = {round((b.pts - a.pts) * reader.time_base * 25) for a, b in pairwise(seen)}
    assert steps == {1}


def _write_noise(writer: VideoWriter) -> None:
    with writer:
        for index in range(500):
            writer.write(noise(index % 10), index)
            time.sleep(0.001)


def test_a_connection_that_is_cut_ends_the_writing() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        writer = VideoWriter(f"tcp://127.0.0.1:{server.getsockname()[1]}", 64, 48, TICK, 25)
        connection, _ = server.accept()
        connection.close()
        with pytest.raises(OutputClosedError, match="was closed by its reader"):
            _write_noise(writer)


# names


@pytest.mark.parametrize(
    ("text", "format", "said"),
    [
        ("gopher://a/b", None, "known are files, - and http"),
        ("0", None, "does not exist; if a camera is meant, give the input format avfoundation"),
        ("video=Cam", None, "if a camera is meant, give the input format dshow"),
        ("a.mp4", "nonsense", "no input format 'nonsense'"),
    ],
)
def test_sources_that_cannot_be_meant(text: str, format: str | None, said: str) -> None:
    with pytest.raises((InputError, ValueError), match=said):
        Source.of(text, format)
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Source.of("udp://127.0.0.1:1", timeout=0)


@pytest.mark.parametrize(
    ("text", "format", "said"),
    [
        ("rtsp://a/b", None, "known are files, - and rtmp"),
        ("-", "avi", "unknown output format 'avi'; known: y4m, mpegts"),
        ("a.mp4", "mpegts", "an output format is for streams"),
    ],
)
def test_sinks_that_cannot_be_meant(text: str, format: str | None, said: str) -> None:
    with pytest.raises((OutputError, ValueError), match=said):
        Sink.of(text, format)


def test_names_hide_what_is_secret() -> None:
    assert Source.of("rtsp://me:pass@cam:554/a/b").name == "rtsp://me:***@cam:554/a/b"
    assert Source.of("rtsp://cam/a").name == "rtsp://cam/a"
    assert Sink.of("rtmp://host/live/key-1").name == "rtmp://host/live/***"
    assert Sink.of("rtmp://host/live/key-1").format == "flv"
    assert Sink.of("udp://127.0.0.1:9").format == "mpegts"
    assert (Sink.of("a.mp4").kind, Sink.of("a.mp4").format) == ("file", None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--input-format", "nonsense"], "no input format"),
        (["--output-format", "avi"], "unknown output format"),
        (["--input-timeout", "0"], "a number above 0"),
    ],
)
def test_the_command_refuses_unknown_formats(more: list[str], said: str) -> None:
    arguments = ["edit", "udp://127.0.0.1:9", "-o", "udp://127.0.0.1:9", "--style", "oil", *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
