"""Weights of some layers off the device: each layer's come on a second stream while others compute.

Two places on the device take turns: while a layer computes from one, the next layer's weights are
copied to the other. Parameters are views of these places for good, so nothing is allocated and
nothing moves; copies are from page-locked memory and can be captured in a CUDA graph. A pass brings
all it needs itself and leaves no copy behind that nobody has waited for.

It knows lists of parameters, not models; without a GPU copies are made at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Offloaded", "bring", "expect", "is_offloaded", "offloaded_bytes"]

#: Bytes that each parameter's storage begins at a multiple of.
_ALIGNED = 256


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class _Storages:
    """The storages of some parameters, and their places one behind the other."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        inside: dict[int, int] = {}
        for x in parameters:
            inside[_address(x)] = inside.get(_address(x), 0) + x.nbytes
        for x in parameters:
            if inside[_address(x)] < x.untyped_storage().nbytes() or not x.is_contiguous():
                x.data = x.data.clone(memory_format=torch.contiguous_format)
        self._starts: dict[int, int] = {}
        self._parts: list[tuple[int, Tensor]] = []
        self.size = 0
        for x in parameters:
            storage = x.untyped_storage()
            if _address(x) not in self._starts:
                whole = torch.empty(0, dtype=torch.uint8, device=x.device).set_(storage)
                self._starts[_address(x)] = self.size
                self._parts.append((self.size, whole))
                self.size += _padded(storage.nbytes())

    def move(self, host: Tensor, place: Tensor) -> None:
        """Copy the numbers to ``host``, and make the parameters views of ``place``."""
        for start, whole in self._parts:
            host[start : start + len(whole)].copy_(whole)
        for x in self._parameters:
            first = self._starts[_address(x)] + x.storage_offset() * x.itemsize
            x.data = place[first : first + x.nbytes].view(x.dtype).view(x.shape)
        self._parts.clear()


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def offloaded_bytes(layers: Sequence[Sequence[Tensor]]) -> int:
    """Bytes that the weights of these layers take on the device once they are offloaded."""
    sizes = [sum(_padded(x.nbytes) for x in layer) for layer in layers]
    return min(len(sizes), 2) * max(sizes, default=0)


class Offloaded:
    """Some layers of a model, in the order in which they run.

    Args:
        layers: the modules; `bring` is called with each before it computes.
        parameters: the weights of each that are offloaded. What shares a storage stays together.
        device: where they are computed with.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        parameters: Sequence[Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        storages = [_Storages(x) for x in parameters]
        size = max(x.size for x in storages)
        count = min(len(layers), 2)
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._hosts: list[Tensor] = []
        for number, each in enumerate(storages):
            host = torch.empty(each.size, dtype=torch.uint8, pin_memory=self._stream is not None)
            each.move(host, self._places[number % 2])
            self._hosts.append(host)
        self._there: list[int | None] = [None] * count
        self._begun = False
        for number, layer in enumerate(layers):
            _NUMBERS[layer] = self, number

    def expect(self) -> None:
        """A pass begins: bring the first layer's weights while those before it compute.

        Graphs that were replayed in between may have left any layer's there.
        """
        self._there, self._begun = [None] * len(self._places), True
        self._copy(0)

    def bring(self, number: int) -> None:
        """Have a layer's weights there for what is computed next, and the next ones coming."""
        if number == 0 and not self._begun:
            self.expect()
        self._begun = False
        self._copy(number)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        if number + 1 < len(self._hosts):
            self._copy(number + 1)

    def _copy(self, number: int) -> None:
        place, host = number % 2, self._hosts[number]
        if self._there[place] == number:
            return
        self._there[place] = number
        target = self._places[place][: len(host)]
        if self._stream is None:
            target.copy_(host)
            return
        # whoever computed from this place was given to the device before
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            target.copy_(host, non_blocking=True)


_NUMBERS: WeakKeyDictionary[nn.Module, tuple[Offloaded, int]] = WeakKeyDictionary()


def expect(layers: Sequence[nn.Module]) -> None:
    """A pass over these layers begins."""
    found = {id(known[0]): known[0] for x in layers if (known := _NUMBERS.get(x)) is not None}
    for offloaded in found.values():
        offloaded.expect()


def is_offloaded(layer: nn.Module) -> bool:
    """Whether a layer's weights come and go."""
    return layer in _NUMBERS


def bring(layer: nn.Module) -> None:
    """Have a layer's weights there, if they are offloaded."""
    known = _NUMBERS.get(layer)
    if known is not None:
        known[0].bring(known[1])
