"""``apply``: a pipeline, a clip and what was asked for are checked, and become a session."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillframe.errors import InputError
from stillframe.hooks.families import find_family
from stillframe.hooks.pruning import Geometry, examine
from stillframe.hooks.session import Session, begin
from stillframe.hooks.standin import Source, StandIn, as_standin
from stillframe.methods.base import Method, as_method
from stillframe.methods.full import Full
from stillframe.methods.prune import InterFramePruning

__all__ = ["apply", "prepared"]


def prepared(pipe: Any, video: Any) -> Tensor:
    """A clip as the pipeline takes it: (1, 3, T, H, W) in [-1, 1]."""
    try:
        clip: Tensor = pipe.video_processor.preprocess_video(video)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the video cannot be read as the pipeline reads videos: {reason}"
        ) from error
    if len(clip) != 1:
        raise InputError(f"one video is pruned at a time, got {len(clip)}")
    return clip


def _check(clip: Tensor, geometry: Geometry) -> None:
    frames, height, width = clip.shape[2:]
    if height % geometry.pixels or width % geometry.pixels:
        raise InputError(
            f"the video is {width}x{height}, and this pipeline needs multiples of {geometry.pixels}"
        )
    if geometry.length(frames) < 1:
        raise InputError(f"the video has {frames} frames, which make no latent frame")


def _method(given: str | Method, tolerance: float | None) -> Method:
    method = as_method(given) if tolerance is None else as_method(given, tolerance=tolerance)
    if isinstance(method, Full):
        return method
    if not isinstance(method, InterFramePruning) or not method.visible or method.rate is not None:
        raise ValueError(
            f"stock pipelines are pruned with the method 'prune' in pixels, or with 'full', got "
            f"{given!r}"
        )
    return method


@torch.no_grad()
def apply(
    pipe: Any,
    video: Any = None,
    *,
    method: str | Method = "prune",
    tolerance: float | None = None,
    mask: Any = None,
    standin: str | StandIn = "neighbour",
) -> Session:
    """Have a diffusers video pipeline compute the tokens that changed, until `remove`.

    The pipeline is called as before, for a video of the same length and size. Applying again
    replaces what was applied.

    Args:
        pipe: a pipeline of a known family (``families``).
        video: the source, in any form that the pipeline takes: a list of pictures, an array (T, H,
            W, 3) or a tensor (T, 3, H, W) in [0, 1]. Without it and a mask, nothing is pruned.
        method: "prune", or "full", which prunes nothing.
        tolerance: grey levels that a patch may differ by from what stands for it; the method's own
            by default.
        mask: (F, h, w) in latent frames and tokens, true = compute.
        standin: what stands in for keys and values of what is not computed, see ``standins``.

    Returns:
        the session; leaving it as a context manager removes it.

    Raises:
        InputError: the pipeline is of no known family, or the video or mask does not fit it.
        ValueError: the method or the stand-in is none for pipelines.
    """
    family = find_family(pipe)
    asked, chosen = _method(method, tolerance), as_standin(standin)
    try:
        geometry = family.geometry(pipe)
    except AttributeError as error:
        raise InputError(
            f"{type(pipe).__name__} is not a pipeline of diffusers whose denoiser can be pruned"
        ) from error
    clip, source = None, None
    if isinstance(asked, InterFramePruning) and (video is not None or mask is not None):
        device, pixels = pipe._execution_device, None
        if video is not None:
            frames = prepared(pipe, video)
            _check(frames, geometry)
            pixels = (frames[0].transpose(0, 1) + 1) / 2
        elif isinstance(chosen, Source) and chosen.latents is None:
            raise InputError(
                f"the stand-in {chosen.name!r} needs a video, and there is only a mask"
            )
        clip = examine(pixels, mask, geometry, asked.tolerance, device)
        if isinstance(chosen, Source):
            source = chosen.latents
            if source is None:
                source = family.source_latents(pipe, frames.to(device))
    session = Session(pipe, family, clip, geometry, chosen, source)
    begin(pipe, session)
    return session
