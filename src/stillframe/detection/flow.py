"""Optical flow: where the pixels of some frames lay in an earlier picture.

On a CPU OpenCV's dense inverse search (Kroeger et al., ECCV 2016), which takes a millisecond for a
small picture; on a GPU the kernels of ``kernels.flow``, which search alike. A camera's motion is
one affine map a frame, fitted to the flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOTIONS", "OpticalFlow", "camera_motion", "luma"]

#: What `InterFramePruning.motion` may be.
MOTIONS = ("off", "global", "full")

_LUMA = (0.299, 0.587, 0.114)
_STEP = 8  # pixels between the places that a camera's motion is fitted to
_ROUNDS = 6
_LEAST_SPREAD = 0.1  # pixels: flow is not known any better
# halvings of the pictures that are searched in: at a fourth of their size edges stay unsteady
_FINEST = 1
_STILL = 0.05  # pixels, below which flow is noise


def luma(pixels: Tensor) -> Tensor:
    """Brightness of (..., 3, H, W) grey levels as (..., H, W) uint8."""
    red, green, blue = pixels.unbind(-3)
    mixed = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return mixed.round().clamp(0, 255).to(torch.uint8)


class OpticalFlow:
    """Flow of one stream.

    Args:
        motion: "full", or "global" for the camera's alone.
    """

    def __init__(self, motion: str) -> None:
        self._motion = motion
        self._search: Any = None
        self._size = torch.Size()

    def __call__(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Displacement from every pixel of some frames to where it lay in an earlier picture.

        Args:
            frames: (T, H, W) uint8, in order.
            reference: (H, W) uint8.

        Returns:
            (T, H, W, 2) float32 (x, y) pixels: ``frames[t]`` at (x, y) is ``reference`` at the sum.
            0 where it is too small to tell.
        """
        flow = self._searched(frames, reference)
        if self._motion == "global":
            flow = camera_motion(flow)
        return flow * (flow.square().sum(-1, keepdim=True) >= _STILL**2)

    def _searched(self, frames: Tensor, reference: Tensor) -> Tensor:
        if self._search is None or self._size != reference.shape:
            import cv2

            search: Any = cv2
            # one for each size: given a start, one that has seen another size reads and writes
            # beyond its buffers (OpenCV 5.0.0)
            self._search = search.DISOpticalFlow_create(search.DISOPTICAL_FLOW_PRESET_FAST)
            self._search.setFinestScale(_FINEST)
            self._search.setVariationalRefinementIterations(0)
            self._size = reference.shape
        before = reference.contiguous().numpy()
        found = list[np.ndarray[Any, Any]]()
        for frame in frames.contiguous().numpy():
            # what moved goes on moving: a search begins where the one before it ended
            start = found[-1].copy() if found else None
            found.append(self._search.calc(frame, before, start))
        return torch.from_numpy(np.stack(found))


def camera_motion(flow: Tensor) -> Tensor:
    """The affine motion that most of a flow agrees with.

    Iteratively reweighted least squares, with the weights of Geman and McClure: what moves by
    itself counts for nothing.

    Args:
        flow: (T, H, W, 2).

    Returns:
        the same shape.
    """
    height, width = flow.shape[1:3]
    y, x = (
        (torch.arange(size, device=flow.device, dtype=torch.float32) - size / 2) / width
        for size in (height, width)
    )
    places = torch.stack(
        [
            x.expand(height, width),
            y.unsqueeze(1).expand(height, width),
            torch.ones_like(flow[0, ..., 0]),
        ],
        -1,
    )
    half = _STEP // 2
    at = places[half::_STEP, half::_STEP].flatten(0, 1)
    seen = flow[:, half::_STEP, half::_STEP].flatten(1, 2)
    error = (seen - seen.median(1, keepdim=True).values).norm(dim=-1)
    found = flow.new_zeros(len(flow), 3, 2)
    for _ in range(_ROUNDS):
        spread = (1.4826 * error.median(1, keepdim=True).values).clamp(min=_LEAST_SPREAD)
        weight = (1 + (error / spread).square()).reciprocal().square().unsqueeze(-1)
        weighted = (at * weight).mT.double()
        found = torch.linalg.solve(weighted @ at.double(), weighted @ seen.double()).float()
        error = (at @ found - seen).norm(dim=-1)
    return places @ found.unsqueeze(1)
