"""CUDA graphs by key, in one pool of memory: captured when a key first comes up, replayed after.

Knows neither models nor video.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["CapturedStep", "Graphs", "Step"]

_POOLS: dict[int, Any] = {}

#: From an input and what is remembered, None at first, to an output and what is remembered.
Step = Callable[[Tensor, "list[Tensor] | None"], "tuple[Tensor, list[Tensor]]"]


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


class Graphs:
    """Graphs of work that reads and writes buffers which never move."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}

    @property
    def count(self) -> int:
        """Graphs there are."""
        return len(self._graphs)

    def forget(self) -> None:
        """Drop all graphs: a buffer has moved."""
        self._graphs.clear()

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """Do ``work``, from its graph if there is one; else eagerly, and capture it for next time.

        Capturing executes nothing, so the eager run is the work itself, and warms up what kernels
        set up at their first launch.

        Returns:
            what the work returns; from a graph, the same tensors every time, overwritten.
        """
        known = self._graphs.get(key)
        if known is not None:
            known[0].replay()
            return known[1]
        done = work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # what other threads do meanwhile, load a model, say, is no fault of this one
        with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
            output = work()
        self._graphs[key] = graph, output
        return done


class CapturedStep:
    """A step of a stream, input and memory to output and memory, as a graph a shape.

    Args:
        step: what it does; a stream's first call (no memory) is always run as it is.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs = Graphs()
        self._inputs: dict[torch.Size, Tensor] = {}
        self._memory: list[Tensor] | None = None

    def __call__(self, x: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if memory is None:
            return self._step(x, None)
        known = self._memory = self._kept(memory)
        given = self._inputs.setdefault(x.shape, torch.empty_like(x))
        given.copy_(x)

        def work() -> Tensor:
            output, after = self._step(given, known)
            for buffer, new in zip(known, after, strict=True):
                buffer.copy_(new)
            return output

        output: Tensor = self._graphs.run(x.shape, work)
        return output.clone(), known

    def _kept(self, memory: Sequence[Tensor]) -> list[Tensor]:
        """Memory in the buffers that graphs know."""
        if memory is self._memory:
            return self._memory
        if self._memory is None or self._memory[0].shape != memory[0].shape:
            self._graphs.forget()
            return [x.clone() for x in memory]
        for buffer, x in zip(self._memory, memory, strict=True):
            buffer.copy_(x)
        return self._memory
