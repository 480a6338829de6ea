"""CUDA graphs by key, in one pool of memory: captured when a key first comes up, replayed after.

Knows neither models nor video.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch

__all__ = ["Graphs", "Replay", "capture"]

_POOLS: dict[int, Any] = {}
_STREAMS: dict[int, torch.cuda.Stream] = {}

#: Does again what was captured; returns the same tensors every time, overwritten.
Replay = Callable[[], Any]


def _pool() -> Any:
    """One pool a device. What outlives a replay is outside of it or kept, so graphs may share."""
    device = torch.cuda.current_device()
    if device not in _POOLS:
        pool, first = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        # a pool ends with the last graph in it, and a handle cannot begin a second one
        with torch.cuda.graph(first, pool=pool):
            torch.zeros(1, device="cuda")
        _POOLS[device] = pool, first
    return _POOLS[device][0]


def _stream() -> torch.cuda.Stream:
    """What is captured must not be given to the default stream."""
    device = torch.cuda.current_device()
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream()
    return _STREAMS[device]


def capture(work: Callable[[], Any]) -> tuple[Any, Replay]:
    """Do ``work`` eagerly, then capture it.

    Capturing executes nothing, so the eager run is the work itself, and warms up what kernels set
    up at their first launch.

    Returns:
        what the work returned, and what does it again.
    """
    done = work()
    torch.cuda.synchronize()
    graph, pool = torch.cuda.CUDAGraph(), _pool()
    # `torch.cuda.graph` would first give all free memory back to the driver, of which the blocks
    # that follow would have to ask for it again
    with torch.cuda.stream(_stream()):
        # what other threads do meanwhile, load a model, say, is no fault of this one
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            output = work()
        except BaseException:
            with suppress(RuntimeError):  # that it was not finished
                graph.capture_end()
            raise
        graph.capture_end()

    def replay() -> Any:
        graph.replay()
        return output

    return done, replay


class Graphs:
    """Graphs of work that reads and writes buffers which never move.

    Attributes:
        captures: graphs captured by anyone in this process.
    """

    captures = 0

    def __init__(self) -> None:
        self._replays: dict[Hashable, Replay] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._replays

    def __len__(self) -> int:
        return len(self._replays)

    def forget(self) -> None:
        """Drop all graphs: a buffer has moved."""
        self._replays.clear()

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """Do ``work``, from its graph if there is one; else eagerly, and capture it for next time.

        Returns:
            what the work returns; from a graph, the same tensors every time, overwritten.
        """
        replay = self._replays.get(key)
        if replay is not None:
            return replay()
        done, self._replays[key] = capture(work)
        Graphs.captures += 1
        return done
