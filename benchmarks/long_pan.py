"""A camera that pans slowly over a still for long: does what is reused blur, does error grow?

The first frame of a clip, seen through a window that moves by a part of a pixel a frame, edited
with motion and without pruning, and without pruning from another seed. By fifths of the time, the
first block left out: the 50th and 99th percentile of patches' root mean square difference from the
dense edit, that of the other seed, the difference of whole pictures' mean colours, and the
sharpness of what was reused, the variance of its Laplacian against the dense edit's there.

Run as ``python -m benchmarks.long_pan CLIP... [--frames 600] [--style photo] [--speed 0.5]``, with
``--gop N`` for a whole block every N, with ``--recovery NAME`` for another recovery.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import say
from benchmarks.live import read_clip
from stillframe.controls import Controls, Gop
from stillframe.engine.stages import BlockStats
from stillframe.pipelines.causal_wan import CausalWanPipeline

_WIDTH, _HEIGHT, _PATCH, _FIRST = 256, 160, 16, 12
Frames = NDArray[np.uint8]


def panned(still: Frames, frames: int, speed: float) -> Frames:
    """(T, H, W, 3) of a picture; beyond its right edge it is mirrored."""
    size = (_WIDTH, _HEIGHT)
    shifts = (np.array([[1, 0, -speed * t], [0, 1, -8]], np.float32) for t in range(frames))
    made: Any = [
        cv2.warpAffine(still, shift, size, None, cv2.INTER_LANCZOS4, cv2.BORDER_REFLECT)
        for shift in shifts
    ]
    return np.stack(made)


def edited(
    pipe: CausalWanPipeline,
    source: Frames,
    style: str,
    method: str,
    seed: int,
    control: Controls | None = None,
) -> tuple[Frames, list[BlockStats]]:
    """The edit, and what was computed of each block."""
    told: list[BlockStats] = []
    generator = torch.Generator().manual_seed(seed)
    stream = pipe.stream(
        style, method=method, generator=generator, on_block=told.append, control=control
    )
    pixels = torch.from_numpy(source).permute(0, 3, 1, 2).unsqueeze(0)
    parts = [x for frames in pixels.split(12, 1) if (x := stream.push(frames)) is not None]
    rest = stream.flush()
    video = torch.cat([*parts, *([] if rest is None else [rest])], 1)[0, : len(source)]
    levels = (video.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return levels.numpy(), told


def by_patch(x: NDArray[Any]) -> NDArray[Any]:
    """(T, H, W) to means of patches, (T, h, w)."""
    shape = len(x), _HEIGHT // _PATCH, _PATCH, _WIDTH // _PATCH, _PATCH
    return np.asarray(x.reshape(shape).mean((2, 4)))


def errors(one: Frames, other: Frames) -> NDArray[Any]:
    """(T, h, w) root mean square difference of patches."""
    return np.sqrt(by_patch(np.square(one.astype(np.float32) - other).mean(3)))


def sharpness(video: Frames) -> NDArray[Any]:
    """(T, h, w) mean square of the Laplacian of the brightness."""
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video)
    return by_patch(np.stack([np.square(cv2.Laplacian(x, cv2.CV_32F)) for x in grey]))


def measure(pipe: CausalWanPipeline, clip: Path, options: argparse.Namespace) -> None:
    """Print the figures of a clip."""
    still = cv2.resize(read_clip(clip, 832, 480, 1)[0], (640, 360), interpolation=cv2.INTER_AREA)
    source = panned(np.asarray(still, np.uint8), options.frames, options.speed)
    dense, _ = edited(pipe, source, options.style, "full", 0)
    other, _ = edited(pipe, source, options.style, "full", 1)
    method = "prune" if options.recovery is None else f"prune:recovery={options.recovery}"
    control = None if options.gop is None else Controls(Gop(options.gop))
    mine, told = edited(pipe, source, options.style, method, 0, control)
    kept = np.concatenate([block.keep[0].numpy() for block in told]).repeat(4, 0)[: len(source)]
    apart, usual = errors(mine, dense), errors(other, dense)
    sharp = sharpness(mine), sharpness(dense)
    computed = np.mean([block.kept_share for block in told[1:]])
    say(f"{clip.stem}, {options.style}, {len(source)} frames: {computed:.0%} computed")
    for part in np.array_split(np.arange(_FIRST, len(source)), 5):
        p50, p99 = np.percentile(apart[part], [50, 99])
        seed = np.percentile(usual[part], [50, 99])
        reused = ~kept[part]
        ratio = sharp[0][part][reused].mean() / sharp[1][part][reused].mean()
        colours = mine[part].mean((1, 2)) - dense[part].mean((1, 2))
        say(
            f"  frames {part[0]} to {part[-1]}: error {p50:.1f} / {p99:.1f}, another seed's "
            f"{seed[0]:.1f} / {seed[1]:.1f}; colour {np.abs(colours).mean():.1f}; sharpness of "
            f"what was reused {ratio:.2f}"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="A slow pan that lasts.")
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--style", default="photo")
    parser.add_argument("--speed", type=float, default=0.5)
    parser.add_argument("--gop", type=int)
    parser.add_argument("--recovery")
    options = parser.parse_args()
    pipe = CausalWanPipeline.from_pretrained("tiny")
    for clip in options.clips:
        measure(pipe, clip, options)


if __name__ == "__main__":
    main()
