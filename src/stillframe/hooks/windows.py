"""A clip that is longer than memory allows: a denoiser is called on windows of time.

It is one call of the pipeline, and one plan of the whole clip: what is not computed is one picture
over any number of windows (`splitting`).
"""

from __future__ import annotations

from typing import Any

import torch

from stillframe.errors import InputError
from stillframe.hooks.applying import apply, prepared
from stillframe.hooks.families import find_family
from stillframe.hooks.hold import hold as show_held
from stillframe.hooks.pruning import Geometry
from stillframe.hooks.splitting import TimeWindows
from stillframe.hooks.standin import StandIn
from stillframe.methods.base import Method

__all__ = ["windows"]


def _fitting(frames: int, length: int, overlap: int | None, geometry: Geometry) -> TimeWindows:
    """Windows in latent frames, checked; they share a quarter if no overlap is given."""

    def whole(count: int) -> bool:
        latent = geometry.length(count)
        return latent > 0 and geometry.pixel_frames(latent - 1).stop == count

    multiple = f"{geometry.temporal}n + 1" if geometry.single else f"{geometry.temporal}n"
    if overlap is None:
        overlap = geometry.pixel_frames(max(1, geometry.length(length) // 4) - 1).stop
    for name, count in (("a window", length), ("an overlap", overlap)):
        if not whole(count):
            raise InputError(f"{name} has {multiple} frames in this pipeline, got {count}")
    if overlap >= length:
        raise InputError(f"windows of {length} frames cannot share {overlap} with the next one")
    if not whole(frames):
        raise InputError(f"a clip has {multiple} frames in this pipeline, got {frames}")
    return TimeWindows(geometry.length(length), geometry.length(overlap))


@torch.no_grad()
def windows(
    pipe: Any,
    video: Any,
    *,
    length: int,
    overlap: int | None = None,
    method: str | Method = "prune",
    tolerance: float | None = None,
    standin: str | StandIn = "neighbour",
    hold: bool = False,
    **call: Any,
) -> Any:
    """Edit a long clip, with the denoiser's memory of windows of time that overlap.

    At every step the denoiser is called on one window after another, and what it predicts is
    averaged where they overlap. A clip of one window is edited as `apply` and a call do it.

    Args:
        pipe: a pipeline of a known family that takes a ``video`` to be edited.
        video: a list of pictures, an array (T, H, W, 3) or a tensor (T, 3, H, W) in [0, 1].
        length: frames of a window.
        overlap: frames that a window shares with the next one; about a quarter by default.
        method, tolerance, standin: see `apply`.
        hold: whether what is not computed shows the pixels of what stands for it, see `hold`.
        call: what the pipeline is called with beside the video.

    Returns:
        the edited frames, as the pipeline returns those of one video.

    Raises:
        InputError: see `apply`; or a length is none that the pipeline has, or its latents have no
            axis of frames, or `enable_cache` is on and there are several windows.
        ValueError: see `apply`.
    """
    geometry, frames = find_family(pipe).geometry(pipe), prepared(pipe, video).shape[2]
    fitting = _fitting(frames, length, overlap, geometry)
    call = {name: given for name, given in call.items() if name != "return_dict"}
    with apply(pipe, video=video, method=method, tolerance=tolerance, standin=standin) as session:
        session.windows = fitting
        edited = pipe(video=video, **call).frames[0]
    return show_held(edited, session) if hold else edited
