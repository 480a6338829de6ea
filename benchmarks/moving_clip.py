"""Frames a second of a clip whose camera moves: dense, held at its place, and followed.

Everything from frames to frames on a GPU, with random weights of Wan 1.3B's shape and the tiny
autoencoder, or with another model. A clip runs back and forth, so that it has no cut and no end.
What is computed depends on the source alone, so random weights tell the speed.

Run as ``python -m benchmarks.moving_clip CLIP... [--model NAME] [--size 832x480] [--device cuda]``;
a CLIP may be an array of frames, see `benchmarks.live`. Speeds are against the first method's.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import say
from benchmarks.live import read_clip, there_and_back
from stillframe.engine.stages import BlockStats
from stillframe.engine.stream import EditStream
from stillframe.loading.random_model import random_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline

METHODS = ("full", "prune:motion=off", "prune:motion=global", "prune:motion=full")
_WARM = 8  # blocks, in which the window fills up


def open_stream(
    pipe: CausalWanPipeline, method: str, device: str, told: list[BlockStats]
) -> EditStream:
    """A stream with a random prompt, the papers' three passes."""
    width = pipe.transformer.config.text_dim
    embeds = torch.randn(1, 64, width, generator=torch.Generator().manual_seed(2))
    return pipe.stream(
        prompt_embeds=embeds.to(device, pipe.denoiser.dtype),
        method=method,
        generator=torch.Generator(device).manual_seed(0),
        on_block=told.append,
    )


def run(stream: EditStream, blocks: list[Tensor], told: list[BlockStats]) -> list[float]:
    """Seconds of each block."""
    for frames in blocks:
        stream.push(frames)
    return [sum(block.seconds.values()) for block in told]


def measure(pipe: CausalWanPipeline, clip: Path, options: argparse.Namespace) -> None:
    """Print a line a method."""
    width, height = map(int, options.size.split("x"))
    frames = np.stack(
        list(islice(there_and_back(read_clip(clip, width, height)), options.blocks * 12))
    )
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).unsqueeze(0)
    blocks = [x.to(options.device) for x in video.split(12, 1)]
    seconds: dict[str, list[float]] = {method: [] for method in options.methods}
    last: dict[str, list[BlockStats]] = {}
    for method in options.methods:
        # graphs are those of all streams
        warming = open_stream(pipe, method, options.device, [])
        run(warming, blocks[:_WARM], [])
        for _ in warming.warm():
            pass
    for _ in range(options.rounds):
        for method in options.methods:
            told: list[BlockStats] = []
            stream = open_stream(pipe, method, options.device, told)
            seconds[method] += run(stream, blocks, told)[_WARM:]
            last[method] = told[_WARM:]
    dense = median(seconds[options.methods[0]])
    for method in options.methods:
        took, told = median(seconds[method]), last[method]
        stages = {
            name: 1000 * median(block.seconds.get(name, 0.0) for block in told)
            for name in ("encode", "mask", "denoise", "context", "decode")
        }
        kept = sum(block.kept_share for block in told) / len(told)
        moved = sum(block.moved_share for block in told) / len(told)
        parts = " ".join(f"{name} {value:.1f}" for name, value in stages.items())
        say(
            f"{clip.stem} {method:<20} {12 / took:6.1f} FPS  {dense / took:.2f}x  computed "
            f"{kept:.0%}, moved {moved:.0%}  ms: {parts}"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Frames a second of clips whose camera moves.")
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", help="by default random weights of Wan 1.3B's shape")
    parser.add_argument("--vae", choices=("tiny", "full"), default="tiny", help="of random weights")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    pipe: Any
    if options.model is None:
        pipe = random_pipeline("1.3b", options.device, torch.bfloat16, vae=options.vae)
    else:
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        pipe = CausalWanPipeline.from_pretrained(options.model, torch_dtype=dtype)
        pipe = pipe.to(options.device)
    for clip in options.clips:
        measure(pipe, clip, options)


if __name__ == "__main__":
    main()
