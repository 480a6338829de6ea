"""Models of a known shape with random weights, for measuring: nothing is read or downloaded.

It does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

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


def random_pipeline(
    shape: str,
    device: str,
    dtype: torch.dtype,
    edit_sigmas: Sequence[float] | None = None,
) -> CausalWanPipeline:
    """A pipeline with random weights and the tiny autoencoder, without a text encoder.

    Args:
        shape: of the transformer, a name in `SHAPES`.
        device, dtype: of the weights.
        edit_sigmas: its own schedule of edits.

    Raises:
        ValueError: there is no such shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    torch.manual_seed(0)
    with torch.device(device):
        transformer = random_transformer(SHAPES[shape], dtype)
        vae = typed(TinyVideoAutoencoder(**TAEW_CONFIG), dtype).eval().requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    return CausalWanPipeline(None, None, transformer, vae, scheduler, edit_sigmas=edit_sigmas)
