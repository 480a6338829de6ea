"""What is made of an autoencoder's weights once, for all its streams: packed matrices and the like.

It is made anew for the first stream after the weights have been moved, or changed by anything that
torch counts, such as ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["derived"]

_T = TypeVar("_T")


def derived(vae: nn.Module, what: str, make: Callable[[], _T]) -> _T:
    """What ``make`` returns, kept with the autoencoder under a name."""
    # no module, so not among the model's parts
    kept: dict[str, tuple[Any, Any]] = vae.__dict__.setdefault("derived", {})
    weights = _weights(vae)
    known = kept.get(what)
    if known is None or known[0] != weights:
        with torch.inference_mode(False), torch.no_grad():
            known = kept[what] = weights, make()
    made: _T = known[1]
    return made


def _weights(vae: nn.Module) -> list[tuple[object, ...]]:
    """Where they lie, in which format, and how often torch has counted a change."""
    return [
        (x.data_ptr(), x.dtype, x.device, -1 if x.is_inference() else x._version)
        for x in vae.parameters()
    ]
