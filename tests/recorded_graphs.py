"""CUDA graphs as they would be on a CPU: torch's operations written down once and done again.

As with a graph, whatever Python decided while it was captured stays decided, and tensors from
outside are those that there were then: what is read from others later is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait"
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out


class RecordedGraphs:
    """In place of ``graphs.Graphs``.

    Attributes:
        replays: how often a recording stood in for work.
    """

    replays = 0

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[_Recorder, Any]] = {}

    @property
    def count(self) -> int:
        return len(self._known)

    def forget(self) -> None:
        self._known.clear()

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        if key in self._known:
            RecordedGraphs.replays += 1
            return self._replayed(*self._known[key])
        with _Recorder() as recorder:
            out = work()
        self._known[key] = recorder, out
        return out

    def _replayed(self, recorder: _Recorder, last: Any) -> Any:
        made: dict[int, Tensor] = {}

        def now(tensor: Tensor) -> Tensor:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, out in recorder.done:
            again = func(*tree_map_only(Tensor, now, args), **tree_map_only(Tensor, now, kwargs))
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old is not new:
                    made[id(old)] = new
        return tree_map_only(Tensor, now, last)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, value)
    return found
