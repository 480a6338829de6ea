"""Learned perceptual image patch similarity, by its authors' package ``lpips``.

The package holds only the small heads; the trunk is torchvision's, whose weights must be on disk
already: nothing is downloaded here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillframe.metrics.base import Metric, Score, checkpoint, first_line, installed, register

__all__ = ["NETS", "PerceptualSimilarity", "distances", "unavailable"]

NETS = ("alex", "vgg")


@register("lpips")
@dataclass(frozen=True)
class PerceptualSimilarity(Metric):
    """Distance of two frames in the features of an image network, weighted to agree with people;
    the mean over frames.

    Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", CVPR 2018, version 0.1 of the heads.

    Range: 0 (identical) to about 1; 0.05 is hard to see, 0.5 another picture. Lower is better.
    Reference: the dense edit.

    Args:
        net: ``"alex"``, the authors' choice for measuring, or ``"vgg"``.

    Raises:
        ValueError: for another net.
    """

    summary = "distance to the dense edit in a network's features (Zhang et al. 2018)"
    higher_is_better = False
    reference = "dense"

    net: str = "alex"

    def __post_init__(self) -> None:
        if self.net not in NETS:
            raise ValueError(f"net must be one of {', '.join(NETS)}, got {self.net!r}")

    def available(self) -> str | None:
        """None, or what is missing: the package, a torchvision that works, or the weights."""
        return unavailable(self.net)

    def least(self) -> tuple[int, int]:
        """One frame that reaches the trunk's last layer."""
        return 1, 32

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        scores = distances(self.net, zip(video, reference, strict=True))
        return Score(float(scores.mean()), scores)


def unavailable(net: str) -> str | None:
    """None if LPIPS with this trunk can be computed here, else one sentence that says why not."""
    if not installed("lpips"):
        return "LPIPS needs the package lpips: pip install 'stillframe[perceptual]'"
    try:
        import lpips  # noqa: F401

        weights = _trunk_weights(net)
    except Exception as error:  # torchvision fails in its own ways if built for another torch
        return f"LPIPS needs torchvision, which could not be imported: {first_line(error)}"
    if not weights.is_file():
        return f"LPIPS needs the weights of its trunk, which are not at {weights}"
    return None


def distances(net: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """LPIPS of pairs of frames (3, H, W), 0 to 1: float64 on the CPU, one number a pair."""
    found = []
    for a, b in pairs:
        found.append(_network(net, a.device)(a[None], b[None], normalize=True).double().mean())
    return torch.stack(found).cpu()


def _trunk_weights(net: str) -> Path:
    from torchvision import models

    source = models.AlexNet_Weights if net == "alex" else models.VGG16_Weights
    return checkpoint(source.IMAGENET1K_V1.url)


@functools.lru_cache(maxsize=2)
def _network(net: str, device: torch.device) -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks torchvision in an old way
        network = lpips.LPIPS(net=net, verbose=False)
    return network.eval().requires_grad_(False).to(device)
