"""CUDA graphs as they would be on a CPU: torch's operations written down once and done again.

As with a graph, whatever Python decided while it was captured stays decided, and tensors from
outside are those that there were then: what is read from others later is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stillframe.backbones.fused import lengths
from stillframe.kernels import graphs
from stillframe.kernels.graphs import Replay


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


class Recordings:
    """Recordings in place of CUDA graphs; see `record`.

    Attributes:
        made, replays: how often work was recorded, and a recording stood in for it.
    """

    def __init__(self) -> None:
        self.made = self.replays = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Replay]:
        """In place of ``graphs.capture``."""
        with _Recorder() as recorder:
            out = work()
        self.made += 1

        def replay() -> Any:
            self.replays += 1
            return _replayed(recorder, out)

        return out, replay


def record(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """Have streams on a CPU share workplaces, and graphs recorded at once."""
    recordings = Recordings()
    monkeypatch.setattr(graphs, "capture", recordings)
    monkeypatch.setattr(lengths, "_EAGER", 0)
    monkeypatch.setattr("stillframe.engine.state.StreamState._captures", True)
    return recordings


def _replayed(recorder: _Recorder, last: Any) -> Any:
    made: dict[int, Tensor] = {}
    for func, args, kwargs, out in recorder.done:
        again = func(*_now(args, made), **_now(kwargs, made))
        _note(out, again, made)
    return tree_map_only(Tensor, lambda tensor: made.get(id(tensor), tensor), last)


# by hand, since torch's trees would take most of a replay's time: arguments of torch's own
# operations are tensors within lists, tuples and dictionaries, and results are so, too


def _now(value: Any, made: dict[int, Tensor]) -> Any:
    """What stands for a recorded argument in this replay."""
    if isinstance(value, Tensor):
        return made.get(id(value), value)
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_now(each, made) for each in value])
    if kind is dict:
        return {key: _now(each, made) for key, each in value.items()}
    return value


def _note(old: Any, new: Any, made: dict[int, Tensor]) -> None:
    """Let the results of an operation stand for those that were recorded."""
    if isinstance(old, Tensor):
        if old is not new:
            made[id(old)] = new
    elif isinstance(old, list | tuple):
        for one, other in zip(old, new, strict=True):
            _note(one, other, made)
