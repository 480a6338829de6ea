"""Models of a known shape with random weights, for measuring: nothing is read or downloaded.

It does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.meter import typed
from stillframe.backbones.wan import random_transformer
from stillframe.loading.bases import known_base
from stillframe.loading.devices import make_current
from stillframe.loading.taehv import TAEW_CONFIGS
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["SHAPES", "random_pipeline"]

_BASES = {
    "1.3b": known_base("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "14b": known_base("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    "5b": known_base("Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
}

SHAPES: dict[str, dict[str, Any]] = {name: base["transformer"] for name, base in _BASES.items()}
"""Configurations of Wan's transformers, for random weights: 2.1's, and "5b" 2.2's."""

_AUTOENCODERS = "tiny", "full"


def random_pipeline(
    shape: str,
    device: str,
    dtype: torch.dtype,
    edit_sigmas: Sequence[float] | None = None,
    vae: str = "tiny",
    **numbers: Any,
) -> CausalWanPipeline:
    """A pipeline with random weights, without a text encoder.

    Args:
        shape: of the transformer, a name in `SHAPES`.
        device, dtype: of the weights; see `make_current`.
        edit_sigmas: its own schedule of edits.
        vae: "tiny", the published one's shape, or "full", Wan's own.
        numbers: settings of the pipeline.

    Raises:
        ValueError: there is no such shape or autoencoder.
    """
    if vae not in _AUTOENCODERS:
        raise ValueError(f"autoencoders are {' and '.join(_AUTOENCODERS)}, got {vae!r}")
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    make_current(torch.device(device))
    torch.manual_seed(0)
    with torch.device(device):
        transformer = random_transformer(SHAPES[shape], dtype)
        coder = typed(_autoencoder(shape, vae), dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    numbers["edit_sigmas"] = edit_sigmas
    return CausalWanPipeline(None, None, transformer, coder, scheduler, **numbers)


def _autoencoder(shape: str, kind: str) -> nn.Module:
    if kind == "tiny":
        return TinyVideoAutoencoder(**TAEW_CONFIGS[SHAPES[shape]["out_channels"]])
    config = {k: v for k, v in _BASES[shape]["vae"].items() if not k.startswith("_")}
    return AutoencoderKLWan(**config)
