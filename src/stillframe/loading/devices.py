"""Several devices by their names, each for a process of its own."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["environment_of", "make_current", "pick_devices"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def make_current(device: torch.device) -> None:
    """Have a CUDA device with an index be this thread's present one, where what names none runs:
    Triton's kernels, waiting for the device, what a model makes while it is loaded. Any other
    device is left alone."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def pick_devices(text: str) -> list[str]:
    """Names of devices, each with its index: of ``0,1``, of ``cuda:0,cuda:1``, of ``all`` CUDA
    devices, or of ``cpu,cpu``, the CPU twice, which becomes ``cpu:0`` and ``cpu:1``.

    Raises:
        ValueError: one of them is not there, or a CUDA device is named twice.
    """
    import torch

    count = torch.cuda.device_count()
    if text.strip() == "all":
        if not count:
            raise ValueError("devices 'all' are none here: torch sees 0 CUDA devices")
        return [f"cuda:{index}" for index in range(count)]
    names = [_named(word.strip(), count) for word in text.split(",")]
    for name, times in Counter(names).items():
        if name != "cpu" and times > 1:
            raise ValueError(f"device {name!r} is named {times} times, and may be once")
    numbers = itertools.count()
    return [f"cpu:{next(numbers)}" if name == "cpu" else name for name in names]


def _named(word: str, count: int) -> str:
    if word == "cpu":
        return word
    found = re.fullmatch(r"(?:cuda:)?([0-9]{1,9})", word)
    if found is None:
        raise ValueError(
            f"devices are numbers of CUDA devices, cuda:N or cpu, or all of them; got {word!r}"
        )
    index = int(found[1])
    if index >= count:
        raise ValueError(f"device 'cuda:{index}' is not there: torch sees {count} CUDA devices")
    return f"cuda:{index}"


def environment_of(device: str | None) -> dict[str, str]:
    """Variables that leave a process one CUDA device, as its first; none for other devices.

    The device's number counts within what this process sees itself.
    """
    kind, _, index = (device or "").partition(":")
    if kind != "cuda" or not index:
        return {}
    seen = os.environ.get(_VISIBLE)
    return {_VISIBLE: index if seen is None else seen.split(",")[int(index)].strip()}
