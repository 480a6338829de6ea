"""ColorVideoVDP, by its authors' package ``cvvdp``: what people see on a given screen."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, first_line, installed, register

__all__ = ["ColorVideoDifference"]


@register("cvvdp")
@dataclass(frozen=True)
class ColorVideoDifference(Metric):
    """Visible difference of two videos in just-objectionable differences (JOD), in colour and over
    time, from a model of contrast sensitivity and masking.

    Mantiuk, Hanji, Ashraf, Asano, Chapiro, "ColorVideoVDP: A visual difference predictor for image,
    video and display distortions", ACM TOG 2024.

    Range: 10 (no visible difference) downwards; one less means that three in four people prefer the
    reference. Higher is better. Reference: the dense edit. One number a video, none for frames.

    Args:
        fps: frames a second at which the videos are watched.
        display: a screen that the package knows.

    Raises:
        ValueError: if fps is not positive.
    """

    summary = "visible difference to the dense edit in JOD, 10 is none (Mantiuk et al. 2024)"
    higher_is_better = True
    reference = "dense"
    per_frame = False

    fps: float = 16.0
    display: str = "standard_fhd"

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")

    def available(self) -> str | None:
        """None, or what is missing: the package, or one that it needs."""
        if not installed("pycvvdp"):
            return "ColorVideoVDP needs the package cvvdp: pip install 'stillframe[perceptual]'"
        try:
            _package()
        except Exception as error:  # torchvision fails in its own ways if built for another torch
            return f"ColorVideoVDP's package cvvdp could not be imported: {first_line(error)}"
        return None

    def least(self) -> tuple[int, int]:
        """One frame with more than one level of contrast."""
        return 1, 32

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        metric = _model(self.display, video.device)
        jod, _ = metric.predict(video, reference, dim_order="FCHW", frames_per_second=self.fps)
        return Score(float(jod), None)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of its own code is not our user's business
        import pycvvdp

    return pycvvdp


@functools.lru_cache(maxsize=1)
def _model(display: str, device: torch.device) -> Any:
    return _package().cvvdp(display_name=display, quiet=True, device=device)
