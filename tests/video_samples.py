"""Small video files for the tests, made with PyAV alone so that stillframe is not its own judge."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LOSSLESS",
    "Pixels",
    "add_sound",
    "decode",
    "gradient",
    "make_video",
    "noise",
    "packets",
    "scramble",
]

Pixels = NDArray[np.uint8]
LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def gradient(index: int = 0, width: int = 64, height: int = 48) -> Pixels:
    """A smooth picture with no symmetry, brighter in blue with every index: (height, width, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = columns * 200 // max(1, width - 1) + 20
    green = rows * 200 // max(1, height - 1) + 20
    return np.stack([red, green, np.full_like(red, (index * 8) % 240)], axis=-1).astype(np.uint8)


def noise(index: int = 0, width: int = 64, height: int = 48) -> Pixels:
    """A picture that no encoder makes small: (height, width, 3)."""
    generator = np.random.default_rng(index)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_video(
    path: Path,
    frames: Sequence[Pixels],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    time_base: Fraction = Fraction(1, 25),
    pts: Sequence[int] | None = None,
    turn: tuple[int, bool] | None = None,
    aspect: Fraction | None = None,
    sound: str | None = None,
    sound_seconds: float = 0.0,
    sound_start: float = 0.0,
) -> Path:
    """Encode `frames`; `turn` is (degrees counterclockwise, mirrored) in the display matrix."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = 8
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        audio: Any = None if sound is None else container.add_stream(sound, rate=48_000)
        if audio is not None:
            add_sound(container, audio, sound_seconds, sound_start)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def add_sound(container: Any, stream: Any, seconds: float, late: float = 0.0) -> None:
    """Encode a stereo tone into an open container, beginning `late` seconds after its start."""
    samples = np.arange(round(seconds * 48_000))
    tone = (np.sin(samples * 2 * np.pi * 440 / 48_000) * 8000).astype(np.int16)
    step = stream.codec_context.frame_size or 1024
    first = round(late * 48_000)
    for start in range(0, len(tone), step):
        part = np.repeat(tone[start : start + step], 2)[None]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, first + start, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def decode(path: Path) -> list[tuple[Fraction, Pixels]]:
    """(seconds, RGB) of every frame, by PyAV's own loop."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [
            (frame.pts * stream.time_base, np.asarray(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(stream)
            if frame.pts is not None
        ]


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """(seconds, payload) of every packet of the first stream of `kind`."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [
            (float((packet.pts or 0) * packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def scramble(path: Path, start: float, stop: float) -> Path:
    """Overwrite a part of the file, given as fractions of its length, with noise."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(0).bytes(last - first)
    damaged = path.with_name("damaged" + path.suffix)
    damaged.write_bytes(data)
    return damaged
