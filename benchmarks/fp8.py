"""What FP8 changes: frames of the bundled model against those of exact numbers.

Products, the cache of keys and values, and stored weights, each by itself, in float32 otherwise.
Beside them stand what bfloat16 changes, what pruning does, and what another seed of a dense edit
does. The fused passes run through their references on a CPU: no card is needed. Run: ``python -m
benchmarks.fp8 CLIP...``; without a clip, on one in which a square moves.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests import tiny
from torch import Tensor

from benchmarks import say
from benchmarks.cuts import read
from benchmarks.rates_bench import psnr
from stillframe.backbones.footprint import pack_transformer
from stillframe.loading.load import load_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline


@torch.inference_mode()
def edited(
    pipe: CausalWanPipeline, frames: Tensor, method: str = "prune", seed: int = 0, **given: Any
) -> Tensor:
    """Frames (T, 3, H, W) of an edit."""
    stream = pipe.stream(
        "oil painting",
        method=method,
        generator=torch.Generator().manual_seed(seed),
        execution="fused",
        **given,
    )
    parts = [stream.push(frames.unsqueeze(0)), stream.flush()]
    return torch.cat([part.float() for part in parts if part is not None], 1)[0]


def clips(options: argparse.Namespace, multiple: int) -> Iterator[tuple[str, Tensor]]:
    """Names and frames (T, 3, H, W)."""
    for clip in options.clips:
        yield clip.stem, read(clip, options.height, multiple, options.frames)
    if not options.clips:
        width = options.height * 5 // 3 // multiple * multiple
        yield "a square that moves", tiny.clip(options.frames, options.height, width)[0]


def main() -> None:
    """Print a few rows a clip."""
    parser = argparse.ArgumentParser(description="FP8 against exact numbers.")
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--frames", type=int, default=48)
    options = parser.parse_args()
    pipe, half = load_pipeline("tiny"), load_pipeline("tiny", dtype="bfloat16")
    packed = load_pipeline("tiny")
    with torch.inference_mode(False):
        pack_transformer(packed.transformer)
    for name, frames in clips(options, pipe.frame_multiple):
        exact, dense = (edited(pipe, frames, method) for method in ("prune", "full"))
        rows = {
            "products in FP8": (edited(pipe, frames, products="fp8"), exact),
            "cache in FP8": (edited(pipe, frames, cache="fp8"), exact),
            "weights in FP8": (edited(packed, frames), exact),
            "all three": (edited(packed, frames, products="fp8", cache="fp8"), exact),
            "bfloat16": (edited(half, frames), exact),
            "pruned, against dense": (exact, dense),
            "dense, two seeds": (edited(pipe, frames, "full", 1), dense),
        }
        say(name)
        for row, (found, other) in rows.items():
            say(f"  {row:<24} {psnr([found], [other]):.1f} dB")


if __name__ == "__main__":
    main()
