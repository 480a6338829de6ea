"""Optical flow from one frame to another, warping along it, and what is visible in both.

Two estimators, neither of them needed to import this: OpenCV's DIS (Kroeger et al. 2016, without
weights) and torchvision's RAFT (Teed and Deng 2020, weights on disk). Flow is in pixels, (2, H, W),
x before y: the pixel at p of the first frame is at p + flow[:, p] of the second."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from stillframe.metrics.base import checkpoint, first_line, installed, levels

__all__ = ["ESTIMATORS", "Estimator", "estimator", "unavailable", "visible", "warp"]

#: Two frames (3, H, W), 0 to 1, to the flow from the first to the second, (2, H, W).
Estimator = Callable[[Tensor, Tensor], Tensor]

ESTIMATORS = ("dis", "raft")


def unavailable(name: str) -> str | None:
    """None if an estimator can be used here, else one sentence that says why not."""
    if name == "dis":
        if not installed("cv2"):
            return "DIS optical flow needs OpenCV: pip install 'stillframe[metrics]'"
        return None
    try:
        weights = _raft_weights()
    except Exception as error:  # torchvision fails in its own ways if built for another torch
        reason = f"which could not be imported: {first_line(error)}"
        return f"RAFT optical flow needs torchvision, {reason}"
    if not weights.is_file():
        return f"RAFT optical flow needs its weights, which are not at {weights}"
    return None


def estimator(name: str) -> Estimator:
    """The estimator called ``name``.

    Raises:
        ValueError: naming the known ones.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown optical flow {name!r}; known: {', '.join(ESTIMATORS)}")
    return _dis() if name == "dis" else _raft_flow


def _dis() -> Estimator:
    import cv2

    create: Any = vars(cv2)["DISOpticalFlow_create"]  # missing in the package's own annotations
    dis = create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        a, b = (cv2.cvtColor(levels(frame), cv2.COLOR_RGB2GRAY) for frame in (first, second))
        found = np.asarray(dis.calc(a, b, None), dtype=np.float32)
        return torch.from_numpy(found).permute(2, 0, 1).to(first.device)

    return flow


def _raft_weights() -> Path:
    from torchvision.models.optical_flow import Raft_Large_Weights

    return checkpoint(Raft_Large_Weights.DEFAULT.url)


@functools.lru_cache(maxsize=1)
def _raft(device: torch.device) -> Any:
    from torchvision.models.optical_flow import raft_large

    model = raft_large(weights=None)
    model.load_state_dict(torch.load(_raft_weights(), map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False).to(device)


def _raft_flow(first: Tensor, second: Tensor) -> Tensor:
    height, width = first.shape[-2:]
    # the network takes multiples of 8, and at least 128
    missing = [max(128, -(-side // 8) * 8) - side for side in (width, height)]
    frames = [
        pad(frame[None] * 2 - 1, (0, missing[0], 0, missing[1]), mode="replicate")
        for frame in (first, second)
    ]
    flow: Tensor = _raft(first.device)(*frames)[-1][0]
    return flow[:, :height, :width]


def _targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel goes, x and y, (H, W) each."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[1]
    return x, y


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """``picture[:, p + flow[:, p]]`` for each pixel p, between pixels by linear interpolation.

    Brings the second frame onto the first, given the flow from the first to the second. Places
    outside take the nearest pixel of the edge. Flow by whole pixels copies, bit for bit.

    Args:
        picture: (C, H, W).
        flow: (2, H, W).
    """
    height, width = picture.shape[-2:]
    x, y = _targets(flow)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    across, down = x - left, y - top
    upper = picture[:, top, left] * (1 - across) + picture[:, top, right] * across
    lower = picture[:, bottom, left] * (1 - across) + picture[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of the first frame are seen in the second: (H, W) bool.

    As in Lai et al. 2018, after Ruder, Dosovitskiy, Brox 2016: dropped are pixels where the flow
    back does not undo the flow there, ``|f + b'|^2 > 0.01 (|f|^2 + |b'|^2) + 0.5``, and motion
    boundaries, ``|grad u|^2 + |grad v|^2 > 0.01 |f|^2 + 0.002``. Dropped here as well are pixels
    that leave the frame, which have nothing to be compared with.

    Args:
        forward: the flow from the first frame to the second, (2, H, W).
        backward: the flow from the second frame to the first.
    """
    height, width = forward.shape[-2:]
    returned = warp(backward, forward)
    length = forward.square().sum(0)
    gap = (forward + returned).square().sum(0)
    lost = gap > 0.01 * (length + returned.square().sum(0)) + 0.5
    steps = (
        pad(forward.diff(dim=2), (0, 1)).square() + pad(forward.diff(dim=1), (0, 0, 0, 1)).square()
    )
    boundary = steps.sum(0) > 0.01 * length + 0.002
    x, y = _targets(forward)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & ~lost & ~boundary
