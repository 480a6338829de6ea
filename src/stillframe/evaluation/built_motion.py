"""Edits of built motion: how much is computed, how stale what is reused, how far from dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.engine.stream import BlockStats
from stillframe.evaluation.editing import worst_patches
from stillframe.evaluation.motion_cases import built_motion
from stillframe.methods import as_method
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["edit_built"]

Pixels = NDArray[np.uint8]


class _Run(NamedTuple):
    frames: Pixels
    kept: float
    moved: float
    stale: dict[str, float]


def edit_built(
    pipe: CausalWanPipeline, embeds: Tensor, name: str, size: tuple[int, int, int]
) -> dict[str, Any]:
    """One case of `motion_cases`, edited with motion, dense, and dense with another seed.

    Args:
        pipe, embeds: the model and a prompt.
        name: of the case.
        size: frames, height and width.

    Returns:
        plain values: ``computed`` and ``moved`` shares of all patches, ``stale`` quantiles of
        what was reused, ``worst`` and ``seed`` differences of patches from dense.
    """
    frames = next(built_motion(*size, [name])).frames

    def run(method: str, seed: int) -> _Run:
        return _run(pipe, embeds, frames, method, seed)

    return _told(pipe, run)


def _told(pipe: CausalWanPipeline, run: Callable[[str, int], _Run]) -> dict[str, Any]:
    moving, dense, other = run("prune:motion=full", 0), run("full", 0), run("full", 1)
    return {
        "computed": moving.kept,
        "moved": moving.moved,
        "stale": moving.stale,
        "worst": worst_patches([(moving.frames, dense.frames)], pipe),
        "seed": worst_patches([(other.frames, dense.frames)], pipe),
    }


def _run(pipe: CausalWanPipeline, embeds: Tensor, frames: Pixels, method: str, seed: int) -> _Run:
    """One edit of uint8 (T, H, W, 3), without a file."""
    blocks: list[BlockStats] = []
    stream = pipe.stream(
        prompt_embeds=embeds,
        method=as_method(method),
        generator=torch.Generator().manual_seed(seed),
        on_block=blocks.append,
    )
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).unsqueeze(0).to(pipe.compute_device)
    parts = [stream.push(part) for part in video.split(pipe.timeline.later_frames, 1)]
    edited = torch.cat([x for x in (*parts, stream.flush()) if x is not None], 1)[0, : len(frames)]
    pixels = (edited.float() * 255).round().clamp(0, 255).to(torch.uint8)
    kept, moved = ([getattr(x, n) for x in blocks] for n in ("kept_share", "moved_share"))
    return _Run(
        pixels.permute(0, 2, 3, 1).cpu().numpy(),
        sum(kept) / len(kept),
        sum(moved) / len(moved),
        stream.staleness.told() or {},
    )
