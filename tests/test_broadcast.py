"""Live in and out: real streams over this computer's own sockets, and the arithmetic of pacing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.live_loop import Heard, free_port, told
from tests import tiny
from tests.edit_fixtures import clip_path_fixture  # noqa: F401
from tests.server_fixtures import wait_until
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.config import EditConfig
from stillframe.errors import InputError, OutputError, StillframeError
from stillframe.live.broadcast import BroadcastReport, broadcast
from stillframe.live.feed import Backlog, SourceFacts, pauses
from stillframe.live.outlet import CameraOutlet, StreamOutlet
from stillframe.live.playout import Playout
from stillframe.live.sound import SoundBuffer
from stillframe.loading.load import load_pipeline
from stillframe.video import Sink, Source, VideoReader, VideoWriter
from stillframe.video.copying import PCM_RATE
from stillframe.video.srt import SrtProgram, has_srt

WAIT = 60.0


# pacing


def test_every_frame_is_shown_a_delay_after_its_time_that_is_enough_for_all() -> None:
    """Blocks of 12 frames at 10 a second that take half a second each."""
    playout = Playout()
    for block in range(20):
        done = (block + 1) * 1.2 + 0.5
        for number in range(12):
            at = (block * 12 + number) / 10
            playout.arrived(at, done)
            assert playout.position(done) <= at + 1e-9  # none comes too late to be shown
    # what the first of a block waits for: the others, and the model
    assert playout.delay == pytest.approx(1.2 + 0.5)


def test_a_delay_that_was_needed_once_wears_off_and_pace_is_never_far_from_real() -> None:
    playout = Playout()
    playout.arrived(0.0, 3.0)
    before, positions = playout.position(3.0), []
    for number in range(1, 1000):
        now = 3.0 + number / 10
        playout.arrived(number / 10, number / 10 + 0.5)
        if number / 10 + 0.5 > 3.0:
            playout.arrived(number / 10, number / 10 + 0.5)
        positions.append(playout.position(now))
    steps = np.diff([before, *positions])
    assert (steps > 0).all()
    assert steps.max() <= 0.1 * 1.05 + 1e-9
    assert playout.delay == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("speed", [0.9999, 1.0001])
def test_a_source_with_a_clock_of_its_own_is_followed_for_an_hour(speed: float) -> None:
    playout, most = Playout(), 0.0
    for number in range(36_000):
        at = number / 10
        now = at * speed + 1.0
        playout.arrived(at, now)
        playout.position(now)
        assert playout.delay is not None
        most = max(most, abs(playout.delay - (now - at)))
    assert most < 0.1


def test_frames_that_waited_are_told_from_those_that_come() -> None:
    backlog = Backlog(expected=True)
    # two seconds are there at once, then frames come 40 ms apart
    waited = [backlog.holds(number / 25, 10.0 + number / 1000) for number in range(50)]
    come = [backlog.holds(2.0 + number / 25, 10.09 + number / 25) for number in range(5)]
    assert all(waited)
    assert not any(come)
    assert not Backlog(expected=False).holds(0.0, 0.0)
    # one that never catches up is taken after three seconds
    slow = Backlog(expected=True)
    assert [slow.holds(n * 10.0, float(n)) for n in range(6)] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("total", [0.0, 0.3, 60.0, 600.0])
def test_pauses_grow_and_are_bounded(total: float) -> None:
    found = pauses(total)
    assert sum(found) == pytest.approx(total)
    assert max(found, default=0.0) <= 10.0
    assert found[:-1] == sorted(found[:-1])


# sound


def tone(count: int, first: int = 1) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.stack([np.arange(first, first + count, dtype=np.int16)] * 2, axis=1)


def test_sound_comes_out_at_its_time_with_silence_where_there_is_none() -> None:
    buffer = SoundBuffer()
    buffer.add(1.0, tone(4800))  # 0.1 s
    buffer.add(1.3, tone(4800, 10_000))
    buffer.start(0.9)
    parts = [buffer.take(end) for end in (0.95, 1.02, 1.02, 1.35, 1.5)]
    sound = np.concatenate(parts)
    assert len(sound) == round(0.6 * PCM_RATE)
    begin = round(0.1 * PCM_RATE)
    np.testing.assert_array_equal(sound[begin : begin + 4800], tone(4800))
    np.testing.assert_array_equal(sound[begin + 14_400 : begin + 19_200], tone(4800, 10_000))
    rest = np.delete(sound, np.r_[begin : begin + 4800, begin + 14_400 : begin + 19_200], axis=0)
    assert not rest.any()


def test_times_in_milliseconds_leave_no_gaps_between_samples() -> None:
    buffer = SoundBuffer()
    step = 1024
    for number in range(40):
        seconds = round(number * step / PCM_RATE, 3)  # as FLV counts
        buffer.add(seconds, tone(step, 1 + number * step % 1000))
    buffer.start(0.0)
    sound = buffer.take(40 * step / PCM_RATE)
    assert (sound[:, 0] > 0).all()


def test_little_is_kept_of_sound_that_nobody_takes() -> None:
    buffer = SoundBuffer()
    for number in range(300):
        buffer.add(number / 10, tone(4800))
    buffer.start(0.0)
    sound = buffer.take(30.0)
    assert 10 * PCM_RATE < np.count_nonzero(sound[:, 0]) <= 15 * PCM_RATE


# streams


STARTED: list[subprocess.Popen[Any]] = []


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def _bound(port: int, kind: str = "tcp") -> bool:
    """Whether somebody waits at a port of this computer to be called."""
    lines = Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    words = [line.split() for line in lines]
    # 0A: listens; of udp all that have a port do
    return any(w[1].endswith(f":{port:04X}") and (kind == "udp" or w[3] == "0A") for w in words)


class Sender:
    """That of the benchmark, in a process of its own: FFmpeg lets no thread run while it calls."""

    def __init__(self, url: str, seconds: float, size: tuple[int, int] = (96, 64)) -> None:
        code = (
            "from benchmarks.live_loop import Sender\n"
            f"each = Sender({url!r}, {seconds}, fps=10, size={size})\n"
            "each.start()\neach.join()\nprint(each.begun, each.error)\n"
        )
        self._command = [sys.executable, "-c", code]

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        STARTED.append(self._process)

    def join(self) -> float:
        """Wait until all is sent; the clock's time of the first frame."""
        begun, _, error = self._process.communicate(timeout=WAIT)[0].partition(" ")
        STARTED.remove(self._process)
        assert error.strip() == "None", error
        return float(begun)


class Receiver:
    """Listens at an address and decodes what comes, in a process of its own, too."""

    def __init__(self, scheme: str) -> None:
        port = free_port()
        self.url = f"{scheme}://127.0.0.1:{port}" + ("/live/key" if scheme == "rtmp" else "")
        place = self.url + ("?listen=1" if scheme == "tcp" else "")
        code = (
            "import pickle, sys\n"
            "from benchmarks.live_loop import listening, receive\n"
            "print('listening', flush=True)\n"
            f"heard = receive(listening({place!r}))\n"
            "sys.stdout.flush()\n"
            "pickle.dump(tuple(heard), sys.stdout.buffer)\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        STARTED.append(self._process)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"listening\n"
        wait_until(lambda: _bound(port))

    def result(self) -> Heard:
        heard = self._process.communicate(timeout=WAIT)[0]
        STARTED.remove(self._process)
        return Heard(*pickle.loads(heard))


def run(
    source: Source, sink: str, pipe: Any = None, stop: Any = None, **options: Any
) -> tuple[BroadcastReport, list[str]]:
    """A broadcast to its end, and what was said meanwhile."""
    said: list[str] = []

    def opened(facts: SourceFacts) -> StreamOutlet:
        size = facts.width, facts.height, facts.fps
        return StreamOutlet(Sink.of(sink), *size, 20, facts.has_sound, stop or (lambda: False))

    report = broadcast(
        pipe or tiny.pipeline(), source, opened, prompt="oil painting", config=EditConfig(seed=0),
        stop=stop or (lambda: False), tell=said.append, **options,
    )  # fmt: skip
    return report, said


@pytest.mark.parametrize(
    ("source", "sink"),
    [("rtsp", "rtmp"), pytest.param("rtmp", "tcp", marks=pytest.mark.slow)],
)
def test_a_stream_comes_out_edited_with_its_sound_in_step(source: str, sink: str) -> None:
    """The bundled model, of whose white a flash stays bright, and a beep with every flash."""
    place = f"{source}://127.0.0.1:{free_port()}/live/camera"
    receiver, sender = Receiver(sink), Sender(place, 13.0)
    sender.start()
    pipe = load_pipeline("tiny", device="cpu")
    report, said = run(Source.of(place).listening, receiver.url, pipe, reconnect=0)
    begun, heard = sender.join(), receiver.result()
    assert said[0].startswith("waiting for a sender at")
    assert report.frames_out == len(heard.pictures) > 20
    assert report.frames_in == report.frames_out + report.dropped
    figures = told(heard, begun)
    assert figures["beeps"] >= 3
    assert figures["flashes"] >= 2
    # of one flash the first bright frame may be left out where the machine is slow
    assert abs(figures["apart_median"]) < 0.040
    if not report.dropped:
        assert figures["apart_most"] < 0.040
    # times are those of the source
    times = np.array([shown for _, shown, _ in heard.pictures])
    steps = np.diff(times) / 0.1
    assert np.abs(steps - np.round(steps)).max() < 0.05


def test_frames_of_a_slow_model_are_left_out_and_latency_stays(tmp_path: Path) -> None:
    """A model that takes a second for a block of 12, and a source of 30 frames a second."""
    from tests.live_fixtures import while_decoding

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 96, 64, 1 / _fraction(30), 30) as writer:
        for number in range(240):
            writer.write(np.full((64, 96, 3), number % 200, np.uint8), number)
    receiver, pipe, begun = Receiver("tcp"), tiny.pipeline(), list[float]()

    def slowly() -> None:
        begun.append(time.monotonic())
        time.sleep(0.8)

    with while_decoding(pipe, slowly):
        report, _ = run(Source.of(path), receiver.url, pipe)
    assert report.dropped > 60
    assert report.frames_in == 240
    assert report.latency_p95 is not None
    # a frame waits for its block to be full and for the one that runs, and then is in its own
    longest = max(later - before for before, later in pairwise(begun))
    assert report.latency_p95 < 0.4 + 3 * longest
    assert len(receiver.result().pictures) == report.frames_out


def _fraction(number: int) -> Any:
    from fractions import Fraction

    return Fraction(number)


@pytest.mark.slow
def test_a_source_that_comes_back_goes_on_in_the_same_stream() -> None:
    place = f"tcp://127.0.0.1:{free_port()}"
    receiver, senders = Receiver("tcp"), [Sender(place, 7.0)]
    done = threading.Event()

    def twice() -> None:
        for each in (senders[0], Sender(place, 7.0, (128, 96))):
            each.start()
            each.join()
            time.sleep(1.0)
        done.set()

    threading.Thread(target=twice, daemon=True).start()
    with pytest.raises(InputError, match="did not come back within 4 s"):
        run(Source.of(place).listening, receiver.url, reconnect=4.0)
    assert done.is_set()
    heard = receiver.result()
    times = np.array([shown for _, shown, _ in heard.pictures])
    assert (np.diff(times) > 0).all()
    # of both, and of the time between them
    assert times[-1] - times[0] > 8.0


def test_an_output_that_goes_is_opened_again_and_then_given_up(clip_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        calls = []

        def take_two() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                calls.append(connection.recv(1000))
                connection.close()
            server.close()

        thread = threading.Thread(target=take_two, daemon=True)
        thread.start()
        with pytest.raises(OutputError, match=r"closed by its reader|could not be written"):
            run(Source.of(_endless(clip_path)), f"tcp://127.0.0.1:{port}", reconnect=4.0)
        thread.join(WAIT)
    assert len(calls) == 2
    assert all(calls)


def _endless(clip: Path) -> Path:
    """A clip of 20 s."""
    path = clip.parent / "long.mp4"
    with VideoReader(clip) as reader:
        size = reader.width, reader.height
    with VideoWriter(path, *size, 1 / _fraction(10), 10) as writer:
        for number in range(200):
            writer.write(np.full((size[1], size[0], 3), number, np.uint8), number)
    return path


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(clip_path: Path) -> None:
    """The command line, while a file is being sent."""
    receiver = Receiver("tcp")
    command = [sys.executable, "-m", "stillframe", "live", "--style", "oil", "--height", "48"]
    with subprocess.Popen(
        [*command, "--in", str(_endless(clip_path)), "--out", receiver.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while said[-1] and "edited at" not in said[-1]:
            said.append(process.stderr.readline())
        assert said[0] == "loading the model tiny\n"
        time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (0, "")
    assert " were sent, " in out
    assert receiver.result().pictures


def test_who_waits_for_a_sender_can_be_stopped() -> None:
    begun = time.monotonic()
    report, said = run(
        Source.of(f"rtmp://127.0.0.1:{free_port()}/live/key").listening,
        "tcp://127.0.0.1:9",
        stop=lambda: time.monotonic() > begun + 0.5,
    )
    assert report.frames_in == report.frames_out == 0
    assert said[0].startswith("waiting for a sender at rtmp://127.0.0.1")
    assert "key" not in said[0]
    assert time.monotonic() - begun < 20.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--in", "missing.mp4", "--out", "tcp://127.0.0.1:9"], "missing.mp4 does not exist"),
        (["--in", "-", "--out", "out.mp4"], "`stillframe edit` writes files"),
        (["--in", "udp://127.0.0.1:9", "--out", "ftp://h/x"], "cannot be written; known are"),
        (["--in", "udp://127.0.0.1:9", "--listen", "--out", "tcp://h:1"], "cannot be listened at"),
        (
            ["--in", "udp://127.0.0.1:9", "--out", "tcp://h:1", "--output-format", "y4m"],
            "--output-format is mpegts or flv or matroska here",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    arguments: list[str], sentence: str
) -> None:
    done = CliRunner().invoke(app, ["live", "--style", "oil", *arguments])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())
    assert "loading" not in done.output


def test_a_virtual_camera_that_is_not_there_is_one_sentence() -> None:
    if importlib.util.find_spec("pyvirtualcam") is None:
        sentence = "a virtual camera needs the package pyvirtualcam"
    elif any(Path("/dev").glob("video*")):
        pytest.skip("there is a camera on this computer")
    else:
        sentence = "there is no virtual camera"
    with pytest.raises(OutputError, match=sentence) as raised:
        CameraOutlet(None, 96, 64, 25.0)
    assert "\n" not in str(raised.value)


# SRT


@contextlib.contextmanager
def _without_ffmpeg(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        yield


@pytest.mark.skipif(has_srt(), reason="this FFmpeg speaks SRT itself")
def test_without_a_program_for_srt_that_is_one_sentence(tmp_path: Path) -> None:
    with _without_ffmpeg(tmp_path), pytest.raises(StillframeError, match="SRT needs the program"):
        SrtProgram.sending("srt://127.0.0.1:9")


def test_video_goes_over_srt_and_is_whole() -> None:
    pytest.importorskip("imageio_ffmpeg")
    port = free_port(socket.SOCK_DGRAM)
    place = f"srt://127.0.0.1:{port}"
    pictures: list[int] = []

    def read() -> None:
        with VideoReader(Source.of(place, timeout=WAIT).listening) as reader:
            pictures.extend(int(frame.pixels.mean()) for frame in reader)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    wait_until(lambda: _bound(port, "udp"))
    with VideoWriter(Sink.of(place), 96, 64, 1 / _fraction(25), 25) as writer:
        for number in range(75):
            writer.write(np.full((64, 96, 3), 2 * number, np.uint8), number)
            time.sleep(0.04)
    thread.join(WAIT)
    # a caller that has not been answered yet drops what is late
    assert len(pictures) > 20
    assert pictures[-1] > 130
    assert (np.diff(pictures) > 0).all()


def test_nobody_is_left_behind_by_srt() -> None:
    pytest.importorskip("imageio_ffmpeg")
    program = SrtProgram.receiving(f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}", True)
    process = program._process
    assert process.poll() is None
    program.close()
    program.close()
    assert process.poll() is not None
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(program.descriptor)
