"""Videos for the tests of metrics, and metrics that can run here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillframe.metrics import Metric, find_metric, metrics

# packages that bring torchvision, which must fit the torch that is installed
OPTIONAL = {"cvvdp", "lpips", "tlpips"} | {n for n in metrics() if n.startswith("vbench_")}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def panned(frames: int = 4, height: int = 64, width: int = 96, step: int = 3) -> Tensor:
    """A smooth picture that moves to the left by ``step`` pixels a frame."""
    whole = width + frames * step
    coarse = noise(1, 3, height // 8, whole // 8)
    picture = interpolate(coarse, (height, whole), mode="bicubic", align_corners=False)[0]
    cuts = [picture[..., step * t : step * t + width] for t in range(frames)]
    return torch.stack(cuts).clamp(0, 1)


def disturbed(video: Tensor, amount: float) -> Tensor:
    strength = 2 * noise(*video.shape, seed=1) - 1
    return (video + amount * strength).clamp(0, 1)


def usable(name: str) -> Metric:
    metric = find_metric(name)()
    reason = metric.available()
    if name in OPTIONAL and reason:
        pytest.skip(reason)
    assert reason is None
    return metric
