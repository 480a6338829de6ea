"""Buffers that never move, and CUDA graphs over them, on which streams take turns.

A `Workplace` has the buffers and graphs of one kind of work at one size: those of a model's passes,
say. It belongs to the model, so that a second stream, a stream that begins anew and eight streams
at once find graphs captured. What a stream has to find again as it left it, its `Memory`, lies in
the buffers while nobody else comes. When another stream does, it is copied out and the other's is
copied in; what a stream has that has ended is dropped. Buffers that every block writes before it
reads them are not remembered.

Workplaces that no living stream uses are kept for the next stream: of each kind the `_IDLE` used
last, and when another one is made, all of them together only up to `_IDLE_SHARE` of their device's
memory. On CPUs, where nothing is captured, every stream has workplaces of its own.

Whoever shares a workplace calls `Memory.enter` and works there within one turn (``turns``). It
knows neither models nor video.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from stillframe.kernels.graphs import Graphs

__all__ = [
    "CapturedStep",
    "Find",
    "Memory",
    "Step",
    "Workplace",
    "captures_on",
    "idle_bytes",
    "own_workplaces",
    "shared_workplace",
]

_T = TypeVar("_T")

#: Workplaces of one owner and kind that are kept while no stream uses them.
_IDLE = 2

#: Share of a device's memory that those of all owners and kinds may take when one more is made.
_IDLE_SHARE = 0.1

#: From an input and what is remembered, None at first, to an output and what is remembered.
Step = Callable[[Tensor, "list[Tensor] | None"], "tuple[Tensor, list[Tensor]]"]


class Workplace:
    """Buffers and graphs of one kind of work at one size.

    Args:
        captures: whether graphs are made of the work done here.
    """

    def __init__(self, captures: bool = False) -> None:
        self.captures = captures
        self._made: dict[Hashable, Any] = {}
        self._made_for: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()
        self._kept: dict[Hashable, tuple[Tensor, float]] = {}
        self._resident: weakref.ref[Memory] | None = None
        self._storages: dict[int, int] = {}
        self.device: torch.device | None = None
        # of the registry: streams here, when one was last, and where the workplace is listed
        self.users = self.used = 0
        self.listed: tuple[weakref.ref[_Places], str, Hashable] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what `zeros` made, and of what is kept."""
        return sum(self._storages.values())

    def _count(self, buffer: Tensor) -> None:
        storage = buffer.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        self.device = buffer.device

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor is one of the buffers, or a part of one."""
        return x.untyped_storage().data_ptr() in self._storages

    def buffer_of(self, x: Tensor) -> tuple[Hashable, tuple[int, ...], torch.dtype] | None:
        """Name, size and format of the buffer that `zeros` made and a tensor is a part of; None if
        it is of none."""
        storage = x.untyped_storage().data_ptr()
        for key, made in self._made.items():
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() == storage:
                name: tuple[Hashable, tuple[int, ...], torch.dtype] = key  # type: ignore[assignment]
                return name
        return None

    def once(self, name: Hashable, make: Callable[[], _T], of: object | None = None) -> _T:
        """What ``make`` returned when the name first came up.

        Args:
            name: of it.
            make: makes it, outside of inference mode, so that it can be written to anywhere.
            of: it lives no longer than this, for which there is another one under the same name.
        """
        made = self._made if of is None else self._made_for.setdefault(of, {})
        if name not in made:
            with torch.inference_mode(False), torch.no_grad():
                made[name] = make()
        known: _T = made[name]
        return known

    def graphs(self, of: object | None = None) -> Graphs | None:
        """Graphs of the work done here, None where nothing is captured.

        Args:
            of: what they were captured with beside the buffers; they are dropped with it.
        """
        return self.once("graphs", Graphs, of) if self.captures else None

    def zeros(
        self, name: Hashable, size: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """A buffer, made of zeros when its name first came up with this size and format."""

        def make() -> Tensor:
            try:
                made = torch.zeros(tuple(size), device=device, dtype=dtype)
            except torch.cuda.OutOfMemoryError:
                _drop_idle(lambda _: 0)
                made = torch.zeros(tuple(size), device=device, dtype=dtype)
            self._count(made)
            return made

        return self.once((name, tuple(size), dtype), make)

    def keep(self, name: Hashable, buffer: Tensor, start: float = 0) -> None:
        """Have streams find a buffer, or a part of one, as they left it.

        Args:
            name: of what is kept.
            buffer: it does not move.
            start: what a stream that comes for the first time finds.
        """
        if name not in self._kept:
            self._kept[name] = buffer, start
            self._count(buffer)

    @torch.no_grad()
    def change(self, to: Memory) -> None:
        """Let a stream find what it left; see `Memory.enter`."""
        before = None if self._resident is None else self._resident()
        if before is to:
            return
        # one buffer after the other, so that no more than one is there once too often
        for name, (buffer, start) in self._kept.items():
            if before is not None:
                before.left[name] = buffer.clone()
            left = to.left.pop(name, None)
            if left is None:
                buffer.fill_(start)
            else:
                buffer.copy_(left)
        self._resident = weakref.ref(to)


class Memory:
    """What one stream leaves at a workplace until it comes again.

    Args:
        place: where; None for one that nobody else uses.

    Attributes:
        place: the workplace.
        left: what was copied out when another stream came, by name.
    """

    def __init__(self, place: Workplace | None = None) -> None:
        self.place = place or Workplace()
        self.left: dict[Hashable, Tensor] = {}
        _come(self.place)
        # its workplace is idle from then on, if nobody else uses it
        weakref.finalize(self, _leave, self.place).atexit = False

    def zeros(
        self,
        name: Hashable,
        size: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        *,
        keep: bool = True,
    ) -> Tensor:
        """A buffer that was made of zeros; ``keep`` says whether it is to be remembered."""
        buffer = self.place.zeros(name, size, device, dtype)
        if keep:
            self.place.keep((name, tuple(size), dtype), buffer)
        return buffer

    def enter(self) -> None:
        """Find the buffers as they were left: call it first in every turn."""
        self.place.change(self)


class _Places(dict[tuple[str, Hashable], Workplace]):
    """The workplaces of an owner by kind and key."""


_LOCK = threading.RLock()
_OWNED: WeakKeyDictionary[Any, _Places] = WeakKeyDictionary()
_LISTED: WeakSet[Workplace] = WeakSet()
_CLOCK = count(1)


def captures_on(device: torch.device) -> bool:
    """Whether graphs are captured on a device."""
    return device.type == "cuda"


def shared_workplace(owner: object, kind: str, key: Hashable, captures: bool) -> Workplace:
    """The workplace of an owner for one kind of work at one size.

    Args:
        owner: the model, or whatever else the work is done with; its workplaces end with it.
        kind: of work.
        key: all that decides about the buffers' shapes, and about what is done.
        captures: whether graphs are made of the work; if not, nothing is shared.
    """
    if not captures:
        return Workplace()
    with _LOCK:
        places = _OWNED.setdefault(owner, _Places())
        if (kind, key) not in places:
            _drop_idle(_bytes_for_idle)
            made = places[kind, key] = Workplace(captures)
            made.listed = weakref.ref(places), kind, key
            _LISTED.add(made)
        place = places[kind, key]
        place.used = next(_CLOCK)
        return place


#: Finds the workplace for a kind of work, with a key as `shared_workplace` takes it.
Find = Callable[[str, Hashable], Workplace]


def own_workplaces(captures: bool = False) -> Find:
    """Finds workplaces that nobody else uses."""
    return lambda _kind, _key: Workplace(captures)


def idle_bytes() -> int:
    """Bytes of buffers that no living stream uses."""
    with _LOCK:
        return sum(place.nbytes for place in _idle())


def _come(place: Workplace) -> None:
    with _LOCK:
        place.users += 1


def _leave(place: Workplace) -> None:
    with _LOCK:
        place.users -= 1
        place.used = next(_CLOCK)
        places = None if place.listed is None else place.listed[0]()
        if places is None or place.listed is None:
            return
        kind = place.listed[1]
        alike = [x for (name, _), x in places.items() if name == kind and not x.users]
        for oldest in sorted(alike, key=lambda x: x.used)[:-_IDLE]:
            _unlist(oldest)


def _idle() -> list[Workplace]:
    """Workplaces that no living stream uses, those used last first."""
    return sorted((x for x in list(_LISTED) if not x.users), key=lambda x: -x.used)


def _drop_idle(most: Callable[[torch.device], float]) -> None:
    """Drop those that nobody uses beyond so many bytes of a device, those used last coming last."""
    taken: dict[torch.device, int] = {}
    with _LOCK:
        for place in _idle():
            if place.device is not None:
                taken[place.device] = taken.get(place.device, 0) + place.nbytes
                if taken[place.device] > most(place.device):
                    _unlist(place)


def _bytes_for_idle(device: torch.device) -> float:
    if device.type != "cuda":
        return float("inf")
    return _IDLE_SHARE * torch.cuda.get_device_properties(device).total_memory


def _unlist(place: Workplace) -> None:
    places = None if place.listed is None else place.listed[0]()
    if places is not None and place.listed is not None:
        places.pop(place.listed[1:], None)
    _LISTED.discard(place)
    place.listed = None


class CapturedStep:
    """A step of a stream, input and memory to output and memory, as a graph a shape.

    Args:
        step: what it does; a stream's first call (no memory) is always run as it is.
        place: the workplace for memory of some shapes; None for one that nobody else uses.
    """

    def __init__(self, step: Step, place: Callable[[Hashable], Workplace] | None = None) -> None:
        self._step = step
        self._place = place or (lambda _: Workplace(captures=True))
        self._own = Memory()
        self._shapes: Hashable = None
        self._known: list[Tensor] | None = None

    def __call__(self, x: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if memory is None:
            return self._step(x, None)
        known = self._found(memory)
        given = self._own.zeros("given", x.shape, x.device, x.dtype, keep=False)
        given.copy_(x)

        def work() -> Tensor:
            output, after = self._step(given, known)
            for buffer, new in zip(known, after, strict=True):
                buffer.copy_(new)
            return output

        graphs = self._own.place.graphs()
        assert graphs is not None
        output: Tensor = graphs.run((x.shape, x.dtype), work)
        return output.clone(), known

    def _found(self, memory: list[Tensor]) -> list[Tensor]:
        """Memory in the buffers that graphs know."""
        shapes = tuple((x.shape, x.dtype, x.device) for x in memory)
        if shapes != self._shapes:
            self._shapes, self._own = shapes, Memory(self._place(shapes))
            self._known = None
        self._own.enter()
        if memory is self._known:
            return memory
        self._known = [
            self._own.zeros(("memory", i), x.shape, x.device, x.dtype) for i, x in enumerate(memory)
        ]
        for buffer, x in zip(self._known, memory, strict=True):
            buffer.copy_(x)
        return self._known
