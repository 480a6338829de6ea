"""Pixels of what was not computed, taken from what stands for it: after a pipeline's decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillframe.detection.pixels import enlarged
from stillframe.errors import InputError
from stillframe.hooks.pruning import ClipPlan, Geometry
from stillframe.hooks.session import Session

__all__ = ["held", "hold"]


def hold(frames: Any, session: Session) -> Any:
    """Show, for every patch that was not computed, the last pixel frame of what stands for it.

    That is the frame which the tolerance was judged against, so what is shown belongs to a source
    that looks like the source now.

    Args:
        frames: one video, as the pipeline returned it: a list of pictures, an array (T, H, W, 3) or
            a tensor (T, 3, H, W).
        session: of the pipeline.

    Returns:
        a new one of the same kind.

    Raises:
        InputError: it has another length or size than what was applied.
    """
    if isinstance(frames, Tensor):
        return _of_session(frames, session)
    if isinstance(frames, np.ndarray):
        return _of_session(torch.from_numpy(frames).movedim(-1, 1), session).movedim(1, -1).numpy()
    pictures = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).movedim(-1, 1)
    held = _of_session(pictures, session).movedim(1, -1).contiguous().numpy()
    return [Image.fromarray(picture) for picture in held]


def _of_session(video: Tensor, session: Session) -> Tensor:
    if session.plan is None:
        return video.clone()
    return held(video, session.plan, session.geometry)


def held(video: Tensor, plan: ClipPlan, geometry: Geometry) -> Tensor:
    """`hold` of a tensor (T, 3, H, W) by a plan.

    Raises:
        InputError: see `hold`.
    """
    side = geometry.pixels
    count, height, width = plan.keep.shape
    size = geometry.length(len(video)), *video.shape[2:]
    if size != (count, height * side, width * side):
        raise InputError(
            f"the video has {len(video)} frames of {video.shape[3]}x{video.shape[2]}, what was "
            f"applied has {geometry.pixel_frames(count - 1).stop} of {width * side}x{height * side}"
        )
    latents = range(count)
    last = torch.tensor([geometry.pixel_frames(n).stop - 1 for n in latents], device=video.device)
    shown = last[plan.provider.to(video.device)]
    shown = enlarged(shown, (side, side)).unsqueeze(1).expand(-1, video.shape[1], -1, -1)
    keep = enlarged(plan.keep.to(video.device), (side, side)).unsqueeze(1)
    out = video.clone()
    for n in latents:
        at = geometry.pixel_frames(n)
        out[at] = torch.where(keep[n], video[at], video.gather(0, shown[n : n + 1]))
    return out
