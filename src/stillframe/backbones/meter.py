"""What models and code need in memory, found without spending it: on torch's meta device, where
tensors have shapes and no numbers. Knows modules and tensors, not which models there are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stillframe.errors import ModelError

__all__ = ["META", "PeakMeter", "built", "typed", "weight_bytes"]

META = torch.device("meta")

_Model = TypeVar("_Model", bound=nn.Module)
_CONVOLUTIONS = (torch.conv2d, torch.conv3d)

#: What torch works out step by step, on the meta device in Python: it took four fifths of a plan of
#: Wan's autoencoder. Results are of the shape and type of what is given.
_STEPWISE = (F.normalize,)


class PeakMeter(TorchFunctionMode):
    """Within the ``with`` block, counts bytes of the tensors that torch's functions return.

    Tensors count from the call that made them until nothing refers to them, views with what they
    are views of, and what was there before not at all. Works on any device, meta included.

    Attributes:
        live: bytes there are now.
        peak: the most there were at the end of a call, arguments and results together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, 0)
        stands_in = func in _STEPWISE and args[0].is_meta
        out, work = torch.empty_like(args[0]) if stands_in else func(*args, **kwargs), 0
        if func in _CONVOLUTIONS:
            out, work = _convolved(args[0], args[1], out)
        for tensor in _tensors(out):
            self._note(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live + work)
        return out

    def _note(self, tensor: Tensor, size: int) -> None:
        """Count a tensor's storage with so many bytes until it goes, if it is not known yet."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            self._known.add(id(storage))
            self.live += size
            weakref.finalize(storage, self._gone, id(storage), size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def added(self, run: Callable[[], object]) -> int:
        """The most bytes that ``run`` adds to those there are before it."""
        before = self.peak = self.live
        run()
        return self.peak - before


def _convolved(x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, int]:
    """A convolution's result in the layout it really has, and the bytes of copies it takes.

    Kernels run on channels-last or blocked memory and copy what is not in that form. Where input or
    weights are channels-last so is the result, which the meta device forgets.
    """
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    ready, asked = (
        t.is_contiguous(memory_format=layout) and not t.is_contiguous() for t in (x, weight)
    )
    if not ready and not asked:
        return out, x.nbytes + out.nbytes
    return out.contiguous(memory_format=layout), 0 if ready else x.nbytes


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def built(what: str, build: Callable[[], _Model]) -> _Model:
    """A model built on the meta device.

    Args:
        what: its name for the message.
        build: makes it from its configuration.

    Raises:
        ModelError: it cannot be built.
    """
    try:
        with META:
            return build()
    except Exception as error:  # what it says depends on which number is wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"no {what} can be built from the configuration: {reason}") from error


def typed(model: _Model, dtype: torch.dtype) -> _Model:
    """The model for inference, in ``dtype`` but for weights that diffusers keeps in float32."""
    exempt = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not exempt & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
