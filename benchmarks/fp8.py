"""What products in FP8 change: frames of the bundled model against those of exact products.

Beside it stand what pruning changes, and what another seed of a dense edit does. The fused passes
run through their references on a CPU: no card is needed. Run: ``python -m benchmarks.fp8 CLIP...``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import say
from benchmarks.cuts import read
from benchmarks.rates_bench import psnr
from stillframe.loading.load import load_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline


@torch.inference_mode()
def edited(
    pipe: CausalWanPipeline, frames: Tensor, method: str, seed: int, products: str
) -> Tensor:
    """Frames (T, 3, H, W) of an edit."""
    stream = pipe.stream(
        "oil painting",
        method=method,
        generator=torch.Generator().manual_seed(seed),
        execution="fused",
        products=products,
    )
    parts = [stream.push(frames.unsqueeze(0)), stream.flush()]
    return torch.cat([part for part in parts if part is not None], 1)[0]


def main() -> None:
    """Print a row a clip."""
    parser = argparse.ArgumentParser(description="Products in FP8 against exact ones.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--frames", type=int, default=48)
    options = parser.parse_args()
    pipe = load_pipeline("tiny")
    for clip in options.clips:
        frames = read(clip, options.height, pipe.frame_multiple, options.frames)
        exact, fp8 = (edited(pipe, frames, "prune", 0, kind) for kind in ("exact", "fp8"))
        dense, other = (edited(pipe, frames, "full", seed, "exact") for seed in (0, 1))
        say(
            f"{clip.stem:<24} fp8 to exact {psnr([fp8], [exact]):.1f} dB, pruned to dense "
            f"{psnr([exact], [dense]):.1f} dB, dense of two seeds {psnr([other], [dense]):.1f} dB"
        )


if __name__ == "__main__":
    main()
