"""What goes along with the pictures of a file, on its way from the demuxer to whoever keeps it.

Repairs times, and holds packets back where it matters that none is handed on too many. Does not
know containers, nor what becomes of the packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
from av.stream import Stream

from stillframe.video.timing import InputClock

__all__ = ["PacketSink", "Tracks"]

PacketSink = Callable[["av.Packet[Any]"], None]

# Samples that a packet of sound holds where it does not say.
_USUAL_SAMPLES = 1024


class Tracks:
    """Packets of some streams of one file, in its order.

    Until `begin` they are kept, as the sink may come late; from then on, without a sink, dropped.

    Args:
        streams: of an open input.
        start: seconds at which the file begins.
    """

    def __init__(self, streams: Sequence[Stream], start: Fraction) -> None:
        self._start = start
        self._sink: PacketSink | None = None
        self._waiting: deque[tuple[float, av.Packet[Any]]] = deque()
        self._passes = self._is_held = False
        self._clocks: dict[int, InputClock | None] = dict.fromkeys(s.index for s in streams)
        self._reached = {stream.index: 0.0 for stream in streams if stream.type == "audio"}

    def __contains__(self, index: int) -> bool:
        return index in self._clocks

    def connect(self, sink: PacketSink | None) -> None:
        """Hand packets to `sink` from now on; None: to nobody."""
        self._sink = sink

    def hold(self) -> None:
        """Keep packets until they are released; before `begin`."""
        self._is_held = True

    def begin(self) -> None:
        """Hand on what was met so far, or let go of it, unless it is to be held."""
        if not self._is_held:
            self.release()

    def release(self, end: float | None = None) -> None:
        """Hand on what begins before `end`, in seconds from the file's start.

        None: all there is, and whatever comes from now on.
        """
        while self._waiting and (end is None or self._waiting[0][0] < end):
            self._give(self._waiting.popleft()[1])
        self._passes = end is None

    def finish(self, end: float) -> None:
        """Hand on what begins before `end`, and nothing any more after that."""
        for seconds, packet in self._waiting:
            if seconds < end:
                self._give(packet)
        self._waiting.clear()
        self._sink, self._passes = None, True

    def has_reached(self, end: float) -> bool:
        """Whether all sound up to `end`, in seconds, was met."""
        return all(reached >= end for reached in self._reached.values())

    def take(self, packet: av.Packet[Any]) -> None:
        """A packet of one of the streams, whose times are made to count from the file's start.

        Those of sound are repaired, too.
        """
        packet.dts = packet.pts if packet.dts is None else packet.dts
        if packet.dts is None:
            return
        if packet.stream_index not in self._reached:
            start = round(self._start / packet.time_base)
            packet.dts -= start
            packet.pts = packet.dts if packet.pts is None else packet.pts - start
            self._pass_on(packet)
            return
        clock = self._clocks[packet.stream_index]
        if clock is None:
            rate = 1 / ((packet.duration or _USUAL_SAMPLES) * packet.time_base)
            start = round(self._start / packet.time_base)
            clock = InputClock(Fraction(packet.time_base), float(rate), start, lowest=None)
            self._clocks[packet.stream_index] = clock
        delay = 0 if packet.pts is None else packet.pts - packet.dts
        packet.dts = clock(packet.dts)
        packet.pts = packet.dts + delay
        self._reached[packet.stream_index] = float(packet.pts * packet.time_base)
        self._pass_on(packet)

    def _pass_on(self, packet: av.Packet[Any]) -> None:
        if self._passes:
            self._give(packet)
        else:
            self._waiting.append((float((packet.pts or 0) * packet.time_base), packet))

    def _give(self, packet: av.Packet[Any]) -> None:
        if self._sink is not None:
            self._sink(packet)
