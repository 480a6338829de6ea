"""Whether weights are numbers: a NaN or an infinite value in them spreads to every pixel.

Knows tensors by their names only.
"""

from __future__ import annotations

from collections import defaultdict
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
    seen: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = defaultdict(list)
    extremes: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for name, tensor in named:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        # formats of a byte have no order of their own in torch
        values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        kind = values.dtype, values.device
        seen[kind].append((name, tensor))
        extremes[kind].extend(torch.aminmax(values))
    for kind, found in extremes.items():
        # asked once, not once a tensor: models have thousands, and a GPU waits for every answer
        finite = torch.stack(found).isfinite().view(-1, 2).all(1).tolist()
        for (name, tensor), good in zip(seen[kind], finite, strict=True):
            if not good:
                raise ModelError(
                    f"{what} has {_counted(tensor)} values in {name} that are NaN or infinite"
                )


def _counted(tensor: Tensor) -> str:
    values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{int((~values.isfinite()).sum())} of {tensor.numel()} {kind}"


def check_model(model: nn.Module, what: str) -> None:
    """`check_finite` of a model's parameters and buffers.

    Raises:
        ModelError: see there.
    """
    check_finite((*model.named_parameters(), *model.named_buffers()), what)
