"""A metric: one number, and where it has them one number a frame, for a finished video.

A metric is a frozen dataclass - its fields are parameters - that is given whole videos in memory
and keeps nothing between calls. What it compares with is its `reference`: nothing, the *dense* edit
(the same prompt and seed with nothing pruned), or the *source* the edit was made from. Metrics know
pixels; files, models, prompts and statistics over many videos are other people's business.

Adding one: a file in this package (or anywhere, if it is imported) with a subclass under
`register`."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.registry import Registry

__all__ = [
    "Metric",
    "Score",
    "checkpoint",
    "find_metric",
    "first_line",
    "installed",
    "levels",
    "metrics",
    "register",
]


class Score(NamedTuple):
    """What a metric found.

    Attributes:
        value: the metric of the whole video; nan where nothing could be measured (nothing still,
            nothing visible in both frames).
        frames: (T,) float64 on the CPU, the metric of each frame; nan for frames that have none
            (the first, for what compares neighbours). None for metrics of whole videos only.
    """

    value: float
    frames: Tensor | None


@dataclass(frozen=True)
class Metric(ABC):
    """Base of all metrics.

    Class attributes:
        name: what ``find_metric`` takes.
        summary: one line for listings.
        higher_is_better: the direction.
        reference: ``"none"``; ``"dense"``: compares with another edit of the same video;
            ``"source"``: needs the video the edit was made from.
        per_frame: whether it has a number for each frame.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    higher_is_better: ClassVar[bool]
    reference: ClassVar[Literal["none", "dense", "source"]]
    per_frame: ClassVar[bool] = True

    def available(self) -> str | None:
        """None if the metric can be computed here, else one sentence that says why not."""
        return None

    def least(self) -> tuple[int, int]:
        """The fewest frames, and the fewest pixels a side, that it can measure."""
        return 1, 1

    def __call__(self, video: Tensor, reference: Tensor | None = None) -> float:
        """The metric of the whole video; arguments and errors as in `measure`."""
        return self.measure(video, reference).value

    def frames(self, video: Tensor, reference: Tensor | None = None) -> Tensor:
        """The metric of each frame, (T,) float64; arguments and errors as in `measure`.

        Raises:
            ValueError: also if the metric has none.
        """
        if not self.per_frame:
            raise ValueError(f"{self.name} is a number for a whole video and has none for frames")
        frames = self.measure(video, reference).frames
        assert frames is not None
        return frames

    @torch.no_grad()
    def measure(self, video: Tensor, reference: Tensor | None = None) -> Score:
        """Both at once, for the price of one.

        Args:
            video: (T, 3, H, W), floating point, RGB from 0 to 1.
            reference: the same of what it is compared with; not looked at if that is ``"none"``.

        Raises:
            ValueError: if a shape or a range is wrong, or the reference is missing.
            ModelError: if the metric is not available.
        """
        _check(self.name, "video", video)
        frames, side = self.least()
        if len(video) < frames or min(video.shape[-2:]) < side:
            raise ValueError(
                f"{self.name} needs at least {frames} frames of {side} x {side} pixels, got "
                f"{len(video)} of {video.shape[-1]} x {video.shape[-2]}"
            )
        if self.reference == "none":
            reference = video
        elif reference is None:
            raise ValueError(
                f"{self.name} compares with the {self.reference} video; none was given"
            )
        else:
            _check(self.name, "reference", reference)
            if reference.shape != video.shape:
                raise ValueError(
                    f"{self.name} cannot compare a video of shape {tuple(video.shape)} with one of "
                    f"{tuple(reference.shape)}"
                )
        if reason := self.available():
            raise ModelError(reason)
        return self._measure(video.float(), reference.to(video.device).float())

    @abstractmethod
    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        """The work: two float32 videos of one shape, on one device, from 0 to 1."""


def _check(metric: str, what: str, video: Tensor) -> None:
    if video.ndim != 4 or video.shape[1] != 3 or not video.numel():
        raise ValueError(
            f"{metric} takes a {what} of shape (frames, 3, height, width), got {tuple(video.shape)}"
        )
    if not video.is_floating_point():
        raise ValueError(f"{metric} takes a {what} of numbers from 0 to 1, got {video.dtype}")
    low, high = (float(x) for x in video.aminmax())
    if not (low >= 0 and high <= 1):  # written so that nan fails as well
        raise ValueError(
            f"{metric} takes a {what} of numbers from 0 to 1, got {low:.3g} to {high:.3g}"
        )


def levels(frame: Tensor) -> NDArray[np.uint8]:
    """A frame (3, H, W), 0 to 1, as the 8-bit picture (H, W, 3) that a file would hold."""
    return (frame * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def installed(package: str) -> bool:
    """Whether a package can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook, or a module without a spec, says no
        return False


def checkpoint(url: str) -> Path:
    """Where torch keeps the weights of an address, whether or not they are there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def first_line(error: Exception) -> str:
    """What an error of another package says first, for a sentence of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)


_REGISTRY: Registry[Metric] = Registry("metric")

#: Class decorator: makes a metric known under a name.
register = _REGISTRY.register

#: All registered metrics by name, usable here or not.
metrics = _REGISTRY.all

#: The metric of a name; ValueError if there is none.
find_metric = _REGISTRY.find
