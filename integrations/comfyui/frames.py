"""Between a host's pictures and a stream's: sizes, masks, and maps of what was computed.

A host's IMAGE is float (T, H, W, 3) in [0, 1], its MASK float (T, H, W) or (H, W).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stillframe import CausalWanPipeline, Controls, EditConfig, Region
from stillframe.controls import MaskVideo, Painting, SourceFacts
from stillframe.video.fit import Fit, fit_to_grid
from stillframe.video.overlay import PatchMap, draw_map

__all__ = ["drawn_map", "fit_images", "kept_mask", "levels", "units", "with_mask"]


def fit_images(pipe: CausalWanPipeline, images: Tensor, short_side: int) -> Fit:
    """The working size for pictures; ``short_side`` is 0 for the model's own, never enlarged.

    Raises:
        ValueError: they are no pictures in colours, or too small.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images are (T, H, W, 3), got {tuple(images.shape)}")
    height, width = images.shape[1:3]
    return fit_to_grid(
        width,
        height,
        multiple=pipe.frame_multiple,
        max_short_side=short_side or pipe.config.default_height,
    )


def levels(images: Tensor) -> Tensor:
    """IMAGE as uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def units(frames: Tensor) -> Tensor:
    """uint8 frames as IMAGE, on the CPU."""
    return frames.cpu().float() / 255


def with_mask(
    config: EditConfig, pipe: CausalWanPipeline, fit: Fit, mask: Tensor | None, mode: str
) -> EditConfig:
    """The configuration for frames of this size, with the region that a MASK is.

    Raises:
        ValueError: the mask is none, or the method cannot have such a region.
    """
    control = config.control
    if mask is not None:
        pictures = (mask if mask.ndim == 3 else mask.unsqueeze(0)).cpu() > 0.5
        if pictures.ndim != 3 or not pictures.numel():
            raise ValueError(f"a mask is (T, H, W) or (H, W), got {tuple(mask.shape)}")
        shape = Painting(pictures[0]) if len(pictures) == 1 else MaskVideo.pack(pictures.numpy())
        control = Controls(*(control or ()), Region(shape, mode))
    if control is None:
        return config
    extent = (fit.width / fit.padded_width, fit.height / fit.padded_height)
    facts = SourceFacts(fit.source_width, fit.source_height, extent, pipe.timeline)
    return replace(config, control=control.fitted(facts))


def kept_mask(patches: PatchMap, fit: Fit, patch: int) -> Tensor:
    """Where a frame was computed, (height, width): a MASK's picture."""
    pixels = patches.keep.repeat(patch, 0).repeat(patch, 1)[: fit.height, : fit.width]
    return torch.from_numpy(pixels.astype(np.float32))


def drawn_map(source: Tensor, patches: PatchMap, patch: int) -> Tensor:
    """The map of a frame: uint8 (height, width, 3), from its source at the working size."""
    drawn = draw_map(source.cpu().numpy(), patches.keep, patch, patches.moved, patches.motion)
    return torch.from_numpy(drawn)
