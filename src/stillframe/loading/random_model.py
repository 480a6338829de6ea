"""Models of a known shape with random weights, for measuring: nothing is read or downloaded.

It does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.meter import typed
from stillframe.backbones.wan import random_transformer
from stillframe.loading.bases import known_base
from stillframe.loading.taehv import TAEW_CONFIG
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["SHAPES", "random_pipeline"]

SHAPES: dict[str, dict[str, Any]] = {
    size: known_base(f"Wan-AI/Wan2.1-T2V-{size.upper()}-Diffusers")["transformer"]
    for size in ("1.3b", "14b")
}
"""Configurations of Wan 2.1's transformers, for random weights."""

_AUTOENCODERS: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: TinyVideoAutoencoder(**TAEW_CONFIG),
    # its own defaults are Wan 2.1's
    "full": AutoencoderKLWan,
}


def random_pipeline(
    shape: str,
    device: str,
    dtype: torch.dtype,
    edit_sigmas: Sequence[float] | None = None,
    vae: str = "tiny",
) -> CausalWanPipeline:
    """A pipeline with random weights, without a text encoder.

    Args:
        shape: of the transformer, a name in `SHAPES`.
        device, dtype: of the weights.
        edit_sigmas: its own schedule of edits.
        vae: "tiny", the published one's shape, or "full", Wan's own.

    Raises:
        ValueError: there is no such shape or autoencoder.
    """
    if vae not in _AUTOENCODERS:
        raise ValueError(f"autoencoders are {' and '.join(_AUTOENCODERS)}, got {vae!r}")
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    torch.manual_seed(0)
    with torch.device(device):
        transformer = random_transformer(SHAPES[shape], dtype)
        coder = typed(_AUTOENCODERS[vae](), dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    return CausalWanPipeline(None, None, transformer, coder, scheduler, edit_sigmas=edit_sigmas)
