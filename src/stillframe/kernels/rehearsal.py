"""What a GPU would be asked to run, found on a CPU: launches of kernels are noted, not done.

Within `rehearsed` code takes the way that it takes on a GPU, over tensors of the CPU: those say
that they are on a GPU, Triton is told which card there is, and its hook for kernels that are not
compiled yet notes each and has it left out. Products and attention, which take all of the time, are
left out, too, and give zeros. So nothing is computed, but shapes, strides and alignment, and with
them Triton's specialisations, are those of a GPU. For a process that does nothing else. It knows
neither models nor video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Card", "Launch", "rehearsed"]

_aten: Any = torch.ops.aten


class Card(NamedTuple):
    """What code asks about a GPU.

    Attributes:
        capability: major and minor.
        processors: multiprocessors.
        memory: bytes.
    """

    capability: tuple[int, int]
    processors: int
    memory: int

    @classmethod
    def of(cls, device: torch.device) -> Card:
        """That of a CUDA device."""
        known: Any = torch.cuda.get_device_properties(device)
        return cls((known.major, known.minor), known.multi_processor_count, known.total_memory)

    @property
    def target(self) -> Any:
        """As Triton calls it."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * self.capability[0] + self.capability[1], 32)


class Launch(NamedTuple):
    """A kernel as it is to be compiled.

    Attributes:
        kernel: its module and name.
        key: Triton's, of what it is specialised for.
        data: all that compiling takes, as JSON; see Triton's ``JITFunction.preload``.
    """

    kernel: str
    key: str
    data: str


@contextmanager
def rehearsed(card: Card, note: Callable[[Launch], None]) -> Iterator[None]:
    """Within the ``with`` block kernels are noted as they are launched, each specialisation once.

    Args:
        card: that is there instead of the CPU.
        note: is told of each.
    """
    from triton import knobs
    from triton.runtime.driver import driver

    known = set[tuple[str, str]]()

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        launch = Launch(f"{fn.module}.{fn.name}", compile["key"], compile["specialization_data"])
        if launch[:2] not in known:
            known.add(launch[:2])
            note(launch)
        return True  # leave it out

    about = SimpleNamespace(multi_processor_count=card.processors, total_memory=card.memory)
    with ExitStack() as stack:
        driver.set_active(_Driver(card.target))
        put = mock.patch.object
        stack.enter_context(put(knobs.runtime, "jit_cache_hook", hook))
        stack.enter_context(put(torch.cuda, "get_device_properties", lambda *_: about))
        stack.enter_context(put(torch.cuda, "get_device_capability", lambda *_: card.capability))
        stack.enter_context(_OnGpu())
        stack.enter_context(_Nothing())
        yield


class _Driver:
    """What Triton asks the driver of a GPU before it compiles."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class _OnGpu(TorchFunctionMode):
    """Tensors say that they are on a GPU; attention, of which a CPU lacks kernels, gives zeros."""

    _is_cuda = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
    _is_cpu = Tensor.is_cpu.__get__  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == self._is_cuda:
            return True
        if func == self._is_cpu:
            return False
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


#: These leave memory as it was: zeros are the same in every rehearsal, and lead nowhere.
_EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
#: These give zeros, of the shape and layout that the meta device tells.
_LEFT_OUT = {
    _aten.addmm,
    _aten.bmm,
    _aten._addmm_activation,
    _aten.convolution,
    _aten.linear,
    _aten.mm,
    _aten._scaled_dot_product_cudnn_attention,
    _aten._scaled_mm,
}


class _Nothing(TorchDispatchMode):
    """Products give zeros, and so does memory that nobody has written to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in _LEFT_OUT:
            out = func(*args, **kwargs)
            return out.zero_() if func in _EMPTY and not out.is_meta else out
        planned = func(*map(_planned, args), **{k: _planned(v) for k, v in kwargs.items()})
        if isinstance(planned, tuple | list):
            return tuple(map(_zeros, planned))
        return _zeros(planned)


def _planned(x: Any) -> Any:
    """A tensor on the meta device, laid out alike."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _zeros(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_meta:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu").zero_()
