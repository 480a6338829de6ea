"""Whose turn it is: threads that share a model, or a GPU, wait for each other here.

A model that is being run has parts of ours in it, and CUDA graphs of one device share their memory:
neither bears a second thread meanwhile. Locks are reentrant, and nobody else's code is called while
one is held. It knows neither models nor video.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

__all__ = ["device_turn", "model_turn"]

_GUARD = threading.Lock()
_OF_MODELS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_OF_DEVICES: dict[torch.device, Any] = {}


@contextmanager
def device_turn(device: torch.device) -> Iterator[None]:
    """A ``with`` block in which no other thread uses a GPU; on other devices it waits for nobody.

    The GPU is the thread's present one meanwhile: Triton launches kernels there, wherever the
    tensors lie, and so does what is captured.

    Args:
        device: without an index, the present one.
    """
    if device.type != "cuda":
        yield
        return
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _GUARD:
        lock = _OF_DEVICES.setdefault(device, threading.RLock())
    with lock, torch.cuda.device(device):
        yield


@contextmanager
def model_turn(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Within the ``with`` block no other thread runs the model, nor uses its GPU if one is given.

    The lock belongs to the model itself: pipelines that share it wait for each other.
    """
    with _GUARD:
        own = _OF_MODELS.setdefault(model, threading.RLock())
    # always in this order, so that no two threads wait for each other
    with nullcontext() if device is None else device_turn(device), own:
        yield
