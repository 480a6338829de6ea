"""What padding kept tokens to the fast path's lengths costs, on masks of real clips.

Clips are encoded by the bundled autoencoder and masked as the engine masks them; nothing is
denoised. Waste is padding / kept tokens, over all blocks that are neither whole nor skipped.

Run as ``python -m benchmarks.padding CLIP... [--height 480 --width 832] [--frames 60]
[--masks MASKS.npy]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.backbones.fused.lengths import bucket_lengths
from stillframe.detection.frames import PixelBlocks
from stillframe.detection.pixels import Anchors
from stillframe.loading.load import load_pipeline
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, patchify, plan_tokens
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock
from stillframe.video import VideoReader
from stillframe.video.fit import fit_to_grid


def blocks(
    pipe: CausalWanPipeline, clip: Path, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Source latents of a clip by block, and their pixels."""
    coder = open_autoencoder(pipe.vae, pipe.config.block_frames)
    shown = PixelBlocks(coder.timeline)
    with VideoReader(clip) as reader:
        fit = fit_to_grid(
            reader.width,
            reader.height,
            multiple=pipe.frame_multiple,
            target_height=options.height,
            target_width=options.width,
        )
        for number, frame in enumerate(reader):
            if number == options.frames:
                return
            picture = fit.to_grid(torch.from_numpy(frame.pixels).unsqueeze(0)).unsqueeze(0)
            shown.add(picture)
            yield from ((latents, shown.take()) for latents in coder.encode(picture))


@torch.inference_mode()
def kept_tokens(
    pipe: CausalWanPipeline, clip: Path, options: argparse.Namespace
) -> tuple[list[tuple[int, int]], list[Tensor]]:
    """Kept and all tokens of every block but the first, and the masks (S, h, w)."""
    select, anchors = InterFramePruning().selector(), Anchors()
    counts, masks = [], []
    previous: Tensor | None = None
    reference: Tensor | None = None
    for block, pixels in blocks(pipe, clip, options):
        patch = pipe.denoiser.patch
        grid = Grid(block.shape[2], block.shape[3] // patch, block.shape[4] // patch)
        tokens = patchify(block.float(), patch)
        frames = tokens.unflatten(1, (grid.frames, grid.frame_tokens))
        if previous is None or reference is None:
            reference = frames[:, -1]
            keep = torch.ones(1, grid.frames, grid.height, grid.width, dtype=torch.bool)
        else:
            source = SourceBlock(frames, previous, reference, grid, pixels, anchors.pixels)
            keep = select(source)
            masks.append(keep[0])
            plan = plan_tokens(keep.flatten(2))
            counts.append((plan.counts[0], grid.tokens))
            rows = predecessor_rows(plan.keep)
            reference = restore(tokens, reference, rows)[:, -grid.frame_tokens :]
        anchors.advance(pixels, keep)
        previous = frames[:, -1]
    return counts, masks


def main() -> None:
    """Print a row a clip, and the mean."""
    parser = argparse.ArgumentParser(description="Padding of kept tokens on real masks.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--masks", type=Path, help="an .npy file to write all masks to")
    options = parser.parse_args()
    pipe = load_pipeline("tiny")
    kept = padding = 0
    all_masks: list[Tensor] = []
    for clip in options.clips:
        counts, masks = kept_tokens(pipe, clip, options)
        all_masks += masks
        partial = [(count, total) for count, total in counts if 0 < count < total]
        added = [next(n for n in bucket_lengths(total) if n >= k) - k for k, total in partial]
        own = sum(count for count, _ in partial)
        kept, padding = kept + own, padding + sum(added)
        share = sum(count for count, _ in counts) / sum(total for _, total in counts)
        waste = f"{sum(added) / own:.1%}" if own else "-"
        say(f"{clip.stem:<24} kept {share:6.1%}  padding {waste}")
    if options.masks is not None:
        np.save(options.masks, torch.stack(all_masks).numpy())
    say(f"{'all':<24} {'':11}  padding {padding / kept:.1%}")


if __name__ == "__main__":
    main()
