"""A stream there and back on this computer: RTSP in, `stillframe live`, RTMP out, decoded again.

    python -m benchmarks.live_loop [CLIP] --seconds 300 [--out-scheme rtmp|tcp|udp]

A sender plays the clip (or a drawn scene) in real time and pushes it to the RTSP address at which
``live`` listens. Every two seconds the picture flashes white, and a beep sounds; its pitch counts.
The result is received on this computer and decoded. Printed are, of the whole way from the sender's
frame to the decoded one: latency (median, 95th percentile), by how much that drifts from the first
to the last minute, and how far a flash and its beep are apart, which is told by their times in the
stream. The last line is JSON. Nothing leaves this computer; all ends after the given time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks import say

__all__ = ["Heard", "Sender", "free_port", "listening", "main", "receive", "told"]

_PERIOD_S, _FLASH_S = 2.0, 0.4
_PITCHES = 8
_RATE = 48_000
_WHITE = 155
"""Mean grey level of an edited flash at least, its first frame too; the scene stays below 140."""


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of this computer that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


class Sender:
    """Plays in real time and pushes to an address, on a thread.

    Args:
        url: rtsp://, rtmp:// or tcp://; tried again until somebody listens there.
        seconds: how long.
        clip: shown between the flashes; None for a drawn scene.
        fps: frames a second.

    Attributes:
        begun: the clock's time of the first frame.
        error: why it ended early.
    """

    def __init__(
        self, url: str, seconds: float, clip: Path | None = None, fps: int = 15,
        size: tuple[int, int] = (160, 96),
    ) -> None:  # fmt: skip
        self.begun = 0.0
        self.error: Exception | None = None
        self._url, self._seconds, self._fps = url, seconds, fps
        self._width, self._height = size
        self._scene = self._drawn() if clip is None else self._read(clip)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(self._seconds + 60)

    def _drawn(self) -> list[NDArray[np.uint8]]:
        base = np.zeros((self._height, self._width, 3), np.uint8)
        base[:] = np.linspace(30, 110, self._width, dtype=np.uint8)[None, :, None]
        scene = []
        for number in range(60):
            picture = base.copy()
            left = int((self._width - 32) * abs(number - 30) / 30)
            picture[48:80, left : left + 32] = (120, 60, 20)
            scene.append(picture)
        return scene

    def _read(self, clip: Path) -> list[NDArray[np.uint8]]:
        with av.open(str(clip)) as container:
            pictures = []
            for frame in container.decode(video=0):
                pixels = frame.reformat(self._width, self._height, "rgb24").to_ndarray()
                pictures.append((pixels * 0.5).astype(np.uint8))  # darker than any flash
                if len(pictures) == 150:
                    break
        return pictures + pictures[-2:0:-1]

    def _run(self) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                self._play()
                return
            except (OSError, av.FFmpegError) as error:
                if self.begun or time.monotonic() > end:
                    self.error = error
                    return
                time.sleep(0.3)

    def _play(self) -> None:
        scheme = self._url.partition(":")[0]
        form = {"rtsp": "rtsp", "rtmp": "flv"}.get(scheme, "mpegts")
        options = {"rtsp_transport": "tcp"} if scheme == "rtsp" else {"flush_packets": "1"}
        with av.open(self._url, "w", format=form, container_options=options) as output:
            encoding = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}
            video: Any = output.add_stream("libx264", rate=self._fps, options=encoding)
            video.width, video.height, video.pix_fmt = self._width, self._height, "yuv420p"
            video.codec_context.gop_size = self._fps
            audio: Any = output.add_stream("aac", rate=_RATE)
            audio.codec_context.layout = "mono"
            output.start_encoding()
            self.begun = time.monotonic()
            for number in range(round(self._seconds * self._fps)):
                at = number / self._fps
                time.sleep(max(0.0, self.begun + at - time.monotonic()))
                picture = self._scene[number % len(self._scene)]
                if at % _PERIOD_S < _FLASH_S:
                    picture = np.full_like(picture, 255)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, self._fps)
                output.mux(video.encode(frame))
                output.mux(audio.encode(self._sound(number)))

    def _sound(self, number: int) -> av.AudioFrame:
        """The samples of a picture's time."""
        each = _RATE // self._fps
        at = (np.arange(each) + number * each) / _RATE
        pitch = 500 + 250 * (np.floor(at / _PERIOD_S) % _PITCHES)
        loud = (at % _PERIOD_S) < _FLASH_S
        wave = (12_000 * np.sin(2 * np.pi * pitch * at) * loud).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = _RATE, number * each, Fraction(1, _RATE)
        return frame


class Heard(NamedTuple):
    """What came back.

    Attributes:
        pictures: clock's time, time in the stream and mean grey level of each.
        sound: samples, from ``sound_start`` in the stream on.
        rate: of the samples.
        error: why it ended.
    """

    pictures: list[tuple[float, float, float]]
    sound: NDArray[np.float32]
    sound_start: float
    rate: int
    error: str


def listening(url: str) -> Any:
    """A stream that somebody sends to an address at which nobody listens yet, opened."""
    options = {"listen": "1"} if url.startswith("rtmp:") else {}
    options["analyzeduration"] = "500000"
    end = time.monotonic() + 120
    while True:
        try:
            return av.open(url, container_options=options, timeout=(120, 20))
        except (OSError, av.FFmpegError):
            # a sender that asks first whether anybody is there, and hangs up
            if time.monotonic() > end:
                raise


def receive(container: Any) -> Heard:
    """Decode a stream to its end, and close it."""
    pictures: list[tuple[float, float, float]] = []
    parts: list[NDArray[np.float32]] = []
    start, rate, error = 0.0, _RATE, ""
    try:
        for packet in container.demux():
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    grey = float(frame.to_ndarray(format="gray").mean())
                    pictures.append((time.monotonic(), float(frame.time or 0.0), grey))
                elif isinstance(frame, av.AudioFrame):
                    if not parts:
                        start, rate = float(frame.time or 0.0), frame.sample_rate
                    # a gap in the stream's times would be one in what is heard
                    expected = round((float(frame.time or 0.0) - start) * rate)
                    missing = expected - sum(map(len, parts)) if len(parts) % 200 == 0 else 0
                    if missing > rate // 20:
                        parts.append(np.zeros(missing, np.float32))
                    parts.append(frame.to_ndarray()[0].astype(np.float32))
    except (OSError, av.FFmpegError) as failure:
        error = str(failure)
    container.close()
    sound = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return Heard(pictures, sound, start, rate, error)


def _beeps(heard: Heard) -> list[tuple[float, int]]:
    """When beeps begin in the stream, and which of the eight pitches they have."""
    step = heard.rate // 200
    blocks = heard.sound[: len(heard.sound) // step * step].reshape(-1, step)
    loud = np.abs(blocks).max(1, initial=0.0) > 0.5 * np.abs(heard.sound).max(initial=1e-9)
    found: list[tuple[float, int]] = []
    for at in np.flatnonzero(loud[1:] & ~loud[:-1]) + 1:
        if found and at * step / heard.rate - found[-1][0] < _FLASH_S:
            continue
        piece = heard.sound[at * step : at * step + heard.rate // 5]
        if len(piece) < heard.rate // 5:
            break
        pitch = np.argmax(np.abs(np.fft.rfft(piece))) * 5
        found.append((at * step / heard.rate, round((float(pitch) - 500) / 250) % _PITCHES))
    return [(heard.sound_start + at, pitch) for at, pitch in found]


def told(heard: Heard, begun: float) -> dict[str, Any]:
    """The figures: latency, drift, and how far sound and picture are apart, in seconds."""
    beeps, rows = _beeps(heard), []
    white = [grey > _WHITE for _, _, grey in heard.pictures]
    count = -1
    for at, pitch in beeps:
        # eight periods are longer than any latency that is of use
        count = pitch if count < 0 else count + (pitch - count) % _PITCHES
        for number in range(1, len(white)):
            clock, shown, _ = heard.pictures[number]
            if white[number] and not white[number - 1] and abs(shown - at) < 1.0:
                step = shown - heard.pictures[number - 1][1]
                rows.append((clock - begun - count * _PERIOD_S, shown - at, step, clock))
                break
    late, apart, steps, clocks = np.array(rows).T if rows else np.zeros((4, 0))
    # the step before a flash is as fine as its time is known
    fine = np.abs(apart[steps < 0.1])
    figures: dict[str, Any] = {
        "frames": len(heard.pictures), "flashes": len(rows), "beeps": len(beeps),
        "apart_median": None, "apart_most": None, "latency_p50": None, "latency_p95": None,
        "drift": None, "fps": None,
    }  # fmt: skip
    if rows:
        first, last = late[clocks <= clocks[0] + 60], late[clocks >= clocks[-1] - 60]
        figures |= {
            "latency_p50": float(np.median(late)),
            "latency_p95": float(np.quantile(late, 0.95)),
            "drift": float(np.median(last) - np.median(first)),
            "fps": (len(heard.pictures) - 1) / (heard.pictures[-1][1] - heard.pictures[0][1]),
        }
    if len(fine):
        figures |= {"apart_median": float(np.median(apart)), "apart_most": float(fine.max())}
    return figures


@contextlib.contextmanager
def _live(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stillframe", "live", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _repeat(lines: Any) -> None:
    for line in lines:
        say(f"  {line.rstrip()}")


def _run(given: argparse.Namespace) -> dict[str, Any]:
    source = f"rtsp://127.0.0.1:{free_port()}/camera"
    port = free_port()
    out = {
        "rtmp": (f"rtmp://127.0.0.1:{port}/live/loop", f"rtmp://127.0.0.1:{port}/live/loop"),
        "tcp": (f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}?listen=1"),
        "udp": (f"udp://127.0.0.1:{port}", f"udp://127.0.0.1:{port}?overrun_nonfatal=1"),
    }[given.out_scheme]
    sender = Sender(source, given.seconds, given.clip, given.fps)
    heard: list[Heard] = []

    def listen() -> None:
        heard.append(receive(listening(out[1])))

    receiver = threading.Thread(target=listen, daemon=True)
    receiver.start()
    arguments = ["--in", source, "--listen", "--out", out[0], "--style", given.style]
    # reuses more only where the machine cannot keep up with the sender
    arguments += ["--reconnect", "0", "--target-fps", str(given.fps), "--rate-mode", "capped"]
    arguments += ["--threads", str(given.threads), "--device", "cpu"]
    with _live(*arguments) as process:
        assert process.stderr is not None
        for line in process.stderr:
            say(f"  {line.rstrip()}")
            if "waiting for a sender" in line:
                sender.start()
                break
        rest = threading.Thread(target=_repeat, args=(process.stderr,), daemon=True)
        rest.start()
        sender.join()
        process.wait(60)
    receiver.join(30)
    if not heard or sender.error is not None:
        raise SystemExit(f"nothing came back: {sender.error}")
    return told(heard[0], sender.begun)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser("benchmarks.live_loop", description=__doc__)
    parser.add_argument("clip", type=Path, nargs="?", help="a video; by default a drawn scene")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--fps", type=int, default=15)
    parser.add_argument("--style", default="oil")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out-scheme", default="rtmp", choices=("rtmp", "tcp", "udp"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = _run(given)
    for name, value in figures.items():
        say(f"{name:14} {value if isinstance(value, int | None) else format(value, '.3f')}")
    line = json.dumps(figures)
    if given.json:
        given.json.write_text(line + "\n")
    say(line)


if __name__ == "__main__":
    main()
