"""Whether a model's weights are still those that something was made of.

Packed matrices, matrices in FP8, CUDA graphs and the keys of a prompt are made of weights once, and
weights may change in place at any time: an adapter is merged or taken out, a checkpoint is loaded.
Three things tell:

- where weights lie, in which format, and how often torch counted a change: asked on the host;
- which adapters (peft's) are merged, which are active, and at what scale: likewise;
- the numbers: ``weight.data += update``, which is how peft merges, leaves all else as it was.
  Parameters of up to `_WHOLE` numbers are compared whole. Of a larger matrix some are compared, at
  least one of each row and each column.

It knows neither models nor adapters' packages.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from math import gcd
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MOVED", "WeightWatch", "has_hooks"]

#: What a module has in its ``__dict__`` whose matrix is another layer's now and then (`offload`).
MOVED = "_stillframe_moved"

_WHOLE = 2**15

#: Integers of a number's size: they compare bit by bit, NaN to NaN.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def has_hooks(module: nn.Module) -> bool:
    """Whether accelerate or diffusers may move the module's weights about as it runs."""
    return "_hf_hook" in module.__dict__ or "_diffusers_hook" in module.__dict__


class WeightWatch:
    """Notices that the weights of one model have changed.

    Weights that hooks move about (offloading) have no place of their own to look at: of those, only
    what torch counts and what adapters say is noticed.

    Attributes:
        lock: held while it looks. Hold it while moving weights without changing them, and call
            `settle` then.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._revision = 0
        self._seen: list[Hashable] | None = None
        self._numbers: list[Tensor] = []

    @torch.no_grad()
    def revision(self, model: nn.Module, *beside: Hashable, read: bool = True) -> int:
        """A number that rises whenever the weights have changed since the last call.

        Args:
            model: always the same one.
            beside: what else counts as a change if it differs.
            read: whether the numbers are compared, too. On a GPU that waits for what the device was
                given before; without, only what is known on the host tells.
        """
        with self.lock:
            seen, parameters = _described(model)
            seen.extend(beside)
            changed = self._seen is not None and seen != self._seen
            if read or changed or self._seen is None:
                numbers = _sampled(parameters)
                changed = changed or (self._seen is not None and _differ(numbers, self._numbers))
                self._numbers = numbers
            self._revision += changed
            self._seen = seen
            return self._revision

    def settle(self, model: nn.Module, *beside: Hashable) -> None:
        """Take weights that have only been moved for what they were; see `revision`."""
        with self.lock:
            before = self._revision
            self.revision(model, *beside)
            self._revision = before


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """All of them, in the same order every time; `nn.Module.modules` takes three times as long."""
    stack: list[nn.Module | None] = [model]
    while stack:
        module = stack.pop()
        if module is not None:
            yield module
            stack.extend(module._modules.values())


def _described(model: nn.Module) -> tuple[list[Hashable], list[Tensor]]:
    """What is known of the weights without reading them, and those that can be read."""
    seen: list[Hashable] = []
    parameters: list[Tensor] = []
    hooked = False
    for module in _modules(model):
        hooked = hooked or has_hooks(module)
        if "merged_adapters" in module.__dict__:
            seen.append(_adapters(module))
        # another layer's numbers may lie there
        if MOVED in module.__dict__:
            continue
        for parameter in module._parameters.values():
            if parameter is not None:
                parameters.append(parameter)
    seen += [hooked, len(parameters)]
    # weights of other kinds, such as quantised ones, have a layout of their own
    plain = [x for x in parameters if type(x) is nn.Parameter]
    seen += [-1 if x.is_inference() else x._version for x in parameters]
    if hooked:
        return seen, []
    places = [x.data_ptr() for x in plain]
    seen += places
    seen += [x.dtype for x in plain]
    # those on the meta device have no numbers
    return seen, [x for x, place in zip(plain, places, strict=True) if place]


def _adapters(layer: Any) -> Hashable:
    """What peft's layer does beside, or has merged into, the one that it wraps."""
    scales = tuple(sorted(getattr(layer, "scaling", {}).items()))
    named = tuple(layer.merged_adapters), tuple(layer.active_adapters)
    return *named, bool(layer.disable_adapters), scales


def _sampled(parameters: list[Tensor]) -> list[Tensor]:
    """Numbers of all parameters, in a few tensors."""
    groups: dict[Hashable, list[Tensor]] = {}
    for x in parameters:
        chosen = _chosen(x)
        key = chosen.dtype, chosen.device, chosen.shape[1:]
        groups.setdefault(key, []).append(chosen)
    return [torch.cat(group) for group in groups.values()]


def _chosen(x: Tensor) -> Tensor:
    """The numbers of a parameter that are compared: a view of it, where that can be had."""
    if x.dim() < 2 or x.numel() <= _WHOLE:
        return x if x.dim() else x[None]
    if not x.is_contiguous():
        return x.reshape(-1)
    step = _step(len(x), x.numel() // len(x))
    return x.as_strided(((x.numel() - 1) // step + 1,), (step,))


@cache
def _step(rows: int, columns: int) -> int:
    """How far apart numbers of a matrix are that are compared.

    No longer than a row, so that no row is left out; without a common divisor, no column is.
    """
    return next(n for n in range(min(rows, columns), 0, -1) if gcd(n, columns) == 1)


def _differ(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two such lists differ in any bit."""
    if [x.shape for x in a] != [x.shape for x in b]:
        return True
    if all(x.device.type == "cpu" for x in a):
        return not all(torch.equal(_bits(x), _bits(y)) for x, y in zip(a, b, strict=True))
    found = [(_bits(x) != _bits(y)).any() for x, y in zip(a, b, strict=True)]
    # one wait for all
    return bool(torch.stack([x.to(found[0].device) for x in found]).any())


def _bits(x: Tensor) -> Tensor:
    return x.view(_BITS.get(x.itemsize, torch.uint8))
