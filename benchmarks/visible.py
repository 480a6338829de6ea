"""What the pixel detector computes of clips, and how stale what it reuses is. No model runs.

A row a clip: the share computed after the first block, and quantiles of staleness in grey levels,
over all reused patches of the clip. With ``--noise`` by how much the share rises for each level of
noise, a normal deviate a pixel, colour and frame, added to 8-bit frames and rounded.

Run as ``python -m benchmarks.visible CLIP... [--sample 60] [--noise 2 4 6] [--tolerance 3]``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import say
from stillframe.detection.pixels import TOLERANCE, Anchors, VisibleMask
from stillframe.detection.staleness import Staleness
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock
from stillframe.video import VideoReader
from stillframe.video.fit import fit_to_grid

_PATCH, _FRAMES, _TEMPORAL = 16, 3, 4  # of the bundled model


def read(clip: Path, height: int, most: int) -> Tensor:
    """Frames (1, T, 3, H, W) in [0, 1], their short side at most ``height``."""
    frames = []
    with VideoReader(clip, max_frames=most) as reader:
        fit = fit_to_grid(reader.width, reader.height, multiple=_PATCH, max_short_side=height)
        frames = [fit.to_grid(torch.from_numpy(frame.pixels).unsqueeze(0)) for frame in reader]
    return torch.cat(frames).unsqueeze(0)


def noisy(frames: Tensor, levels: float) -> Tensor:
    """The same with sensor noise of so many grey levels, as 8-bit frames have it."""
    generator = torch.Generator().manual_seed(0)
    noise = levels * torch.randn(frames.shape, generator=generator)
    return (255 * frames + noise).round().clamp(0, 255) / 255


def judge(frames: Tensor, tolerance: float) -> tuple[float, Staleness]:
    """Share computed after the first block, and the staleness of what is reused."""
    select, anchors, staleness = VisibleMask(tolerance), Anchors(), Staleness()
    size, kept = _FRAMES * _TEMPORAL, []
    grid = Grid(_FRAMES, frames.shape[-2] // _PATCH, frames.shape[-1] // _PATCH)
    tokens = torch.zeros(1, _FRAMES, grid.frame_tokens, 1)
    frames = torch.cat([frames[:, :1].expand(-1, _TEMPORAL, -1, -1, -1), frames], 1)
    for first in range(0, frames.shape[1] - size - _TEMPORAL + 1, size):
        pixels = frames[:, first : first + size + _TEMPORAL]
        keep = torch.ones(1, _FRAMES, grid.height, grid.width, dtype=torch.bool)
        if first:
            source = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid, pixels, anchors.pixels)
            keep = select(source)
            kept.append(float(keep.float().mean()))
        staleness.add(anchors.advance(pixels, keep), keep)
    return sum(kept) / max(len(kept), 1), staleness


@torch.inference_mode()
def row(clip: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What there is to say of a clip."""
    frames = read(clip, options.height, options.frames)
    kept, staleness = judge(frames, options.tolerance)
    found: dict[str, Any] = {"clip": clip.stem, "kept": kept, **(staleness.told() or {})}
    for levels in options.noise:
        found[f"noise {levels:g}"] = judge(noisy(frames, levels), options.tolerance)[0] - kept
    return found


def _quantiles(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst clip of every figure."""
    names = [name for name in rows[0] if name not in ("clip", "kept")]
    return {name: max(r[name] for r in rows if name in r) for name in names}


def main() -> None:
    """Print a row a clip, the worst of every column, and JSON."""
    parser = argparse.ArgumentParser(description="What the pixel detector computes of clips.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--sample", type=int, help="so many of the clips, drawn with seed 0")
    parser.add_argument("--noise", type=float, nargs="*", default=[])
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    clips = sorted(options.clips)
    if options.sample is not None:
        clips = sorted(random.Random(0).sample(clips, min(options.sample, len(clips))))
    rows = []
    for clip in clips:
        rows.append(row(clip, options))
        told = "  ".join(f"{k} {v:.3f}" for k, v in rows[-1].items() if k != "clip")
        say(f"{clip.stem:<34}{told}")
    most = _quantiles([r for r in rows if "max" in r] or rows)
    say(json.dumps({"what": "visible", "clips": len(rows), "worst": most}))


if __name__ == "__main__":
    main()
