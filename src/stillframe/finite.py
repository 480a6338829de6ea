"""Whether weights are numbers: a NaN or an infinite value in them spreads to every pixel.

Knows tensors by their names only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stillframe.errors import ModelError

__all__ = ["check_finite", "check_model"]


def check_finite(named: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Refuse weights in which a value is NaN or infinite.

    One pass over each tensor that copies nothing: the least and the greatest value are NaN where
    one value is, and unlike a sum they do not overflow.

    Args:
        named: tensors by name; those that hold no floating-point numbers are skipped.
        what: the name of the weights, for the message.

    Raises:
        ModelError: names the first such tensor, and how many of its values are.
    """
    for name, tensor in named:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        # formats of a byte have no order of their own in torch
        values = tensor.float() if tensor.element_size() == 1 else tensor
        least, greatest = torch.aminmax(values.detach())
        if bool(least.isfinite() & greatest.isfinite()):
            continue
        count = int((~values.isfinite()).sum())
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"{what} has {count} of {tensor.numel()} values in {name} that are NaN or infinite, "
            f"as {kind}"
        )


def check_model(model: nn.Module, what: str) -> None:
    """`check_finite` of a model's parameters and buffers.

    Raises:
        ModelError: see there.
    """
    check_finite((*model.named_parameters(), *model.named_buffers()), what)
