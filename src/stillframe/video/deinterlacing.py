"""Pictures woven of two fields, made whole. Knows FFmpeg's filter for it, not files."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

__all__ = ["Deinterlacer"]


class Deinterlacer:
    """One picture for each that comes; those that say that they are interlaced are deinterlaced.

    From the first of these on it is one picture late, because bwdif looks at the next one. Others
    pass as they are.

    Args:
        time_base: seconds per tick of the pictures' times.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None

    def push(self, picture: av.VideoFrame) -> list[av.VideoFrame]:
        """A picture, and the times of which one of pts and dts is known -> those that are ready."""
        kind = picture.width, picture.height, picture.format.name
        if self._graph is None and not picture.interlaced_frame:
            return [picture]
        ready = self.flush() if kind != self._kind else []
        if self._graph is None:
            self._graph, self._kind = self._make(picture), kind
        picture.pts = picture.dts if picture.pts is None else picture.pts
        picture.time_base = self._time_base
        self._graph.push(picture)
        return ready + self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """The pictures that wait for another one."""
        if self._graph is None:
            return []
        self._graph.push(None)
        ready, self._graph = self._pull(), None
        return ready

    def _make(self, picture: av.VideoFrame) -> Graph:
        graph = Graph()
        source = graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=self._time_base,
        )
        whole = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        source.link_to(whole)
        whole.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _pull(self) -> list[av.VideoFrame]:
        ready: list[av.VideoFrame] = []
        while self._graph is not None:
            try:
                picture: Any = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            # the filter counts in half ticks
            ratio = Fraction(picture.time_base) / self._time_base
            picture.pts = None if picture.pts is None else round(picture.pts * ratio)
            picture.duration = round((picture.duration or 0) * ratio)
            picture.time_base = self._time_base
            ready.append(picture)
        return ready
