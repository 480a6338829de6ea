"""Sound of a live source, kept until the pictures that it belongs to are there.

`SoundDecoder` makes samples of packets, `SoundBuffer` puts them on one time line, where a gap is
silence. 48,000 samples a second, stereo, 16 bits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from stillframe.video.copying import PCM_RATE

__all__ = ["SoundBuffer", "SoundDecoder"]

Samples = NDArray[np.int16]

#: Clocks of containers count in milliseconds, and samples are to follow one another without a gap;
#: what is further off than this is where it says.
_SNAP = PCM_RATE // 50
_MOST = 15 * PCM_RATE


class SoundBuffer:
    """Samples by their time, from one thread to another."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, Samples]] = deque()
        self._lock = threading.Lock()
        self._end = 0
        self._at: int | None = None

    def add(self, seconds: float, samples: Samples) -> None:
        """Take samples, (n, 2), the first of which is heard at a time in seconds."""
        with self._lock:
            first = round(seconds * PCM_RATE)
            if self._chunks and abs(first - self._end) < _SNAP:
                first = self._end
            self._chunks.append((first, samples))
            self._end = first + len(samples)
            while self._chunks and self._end - self._chunks[0][0] > _MOST:
                self._chunks.popleft()

    def start(self, seconds: float) -> None:
        """What is taken next begins at a time."""
        with self._lock:
            self._at = round(seconds * PCM_RATE)

    def take(self, seconds: float) -> Samples:
        """Samples from where the last call ended to a time; silence where there are none."""
        with self._lock:
            begin = self._at
            end = round(seconds * PCM_RATE)
            if begin is None or end <= begin:
                return np.zeros((0, 2), np.int16)
            self._at = end
            # of a leap of the clock as much as is ever kept
            begin = max(begin, end - _MOST)
            out = np.zeros((end - begin, 2), np.int16)
            for first, samples in self._chunks:
                low, high = max(first, begin), min(first + len(samples), end)
                if low < high:
                    out[low - begin : high - begin] = samples[low - first : high - first]
            while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= end:
                self._chunks.popleft()
            return out


class SoundDecoder:
    """Packets of one stream of sound into samples.

    Args:
        stream: of an open input; its decoder is used, and by nobody else.
        take: called with seconds from the input's start, and samples.
    """

    def __init__(self, stream: AudioStream, take: Callable[[float, Samples], None]) -> None:
        self._stream, self._take = stream, take
        self._time_base = stream.time_base
        self._resampler = AudioResampler("s16", "stereo", PCM_RATE)
        self._start: float | None = None

    def __call__(self, packet: av.Packet[Any]) -> None:
        """Take a packet; those of other streams, and damaged ones, are left out."""
        if packet.stream_index != self._stream.index:
            return
        try:
            for frame in self._stream.codec_context.decode(packet):
                self._resample(frame)
        except (av.FFmpegError, ValueError):
            # another format begins with another resampler
            self._resampler = AudioResampler("s16", "stereo", PCM_RATE)

    def _resample(self, frame: av.AudioFrame) -> None:
        if frame.pts is None or self._time_base is None:
            return
        start = float(frame.pts * self._time_base)
        frame.pts = None
        for part in self._resampler.resample(frame):
            samples = np.ascontiguousarray(part.to_ndarray().reshape(-1, 2), np.int16)
            self._take(start, samples)
            start += len(samples) / PCM_RATE
