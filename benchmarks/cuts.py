"""How well scene cuts are found: recall and precision on clips joined at known places.

Shots of 17 to 45 frames are taken from the clips at random and joined without regard to the
autoencoder's groups of four frames; the detector sees the bundled autoencoder's latents. A cut is
found if it is reported for the latent frame that holds its first frame, or the next one. Each clip
is run by itself, too: nothing may be reported there.

Run as ``python -m benchmarks.cuts CLIP... [--heights 128 240] [--seeds 101]``.
"""

from __future__ import annotations

import argparse
import random
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.controls.cuts import CutDetector, Cuts
from stillframe.loading.load import load_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import patchify
from stillframe.video import VideoReader
from stillframe.video.fit import Fit, fit_to_grid


def read(clip: Path, height: int, multiple: int, most: int = 120) -> Tensor:
    """Frames (T, 3, H, W) of a clip in [0, 1], brought to one 16:9 size."""
    with VideoReader(clip) as reader:
        width = round(height * 16 / 9 / multiple) * multiple
        fit: Fit = fit_to_grid(
            reader.width,
            reader.height,
            multiple=multiple,
            target_height=height // multiple * multiple,
            target_width=width,
        )
        frames = [torch.from_numpy(f.pixels) for f, _ in zip(reader, range(most), strict=False)]
    return torch.cat([fit.to_grid(frame.unsqueeze(0)) for frame in frames])


@torch.inference_mode()
def found(pipe: CausalWanPipeline, frames: Tensor) -> list[int]:
    """Latent frames at which the detector reports a cut."""
    coder = open_autoencoder(pipe.vae, pipe.config.block_frames)
    detect, cuts, start = CutDetector(Cuts()), [], 0
    for part in frames.split(12):
        for block in coder.encode(part.unsqueeze(0)):
            size = block.shape[2]
            tokens = patchify(block.float(), pipe.denoiser.patch).unflatten(1, (size, -1))
            cuts += [start + j for j in detect(tokens).begun]
            start += size
    return cuts


def joined(clips: list[Tensor], seed: int, shots: int = 36) -> tuple[Tensor, list[int]]:
    """Shots of random clips one after the other, and the frames at which they begin."""
    rng = random.Random(seed)
    parts: list[Tensor] = []
    begun: list[int] = []
    last = -1
    for _ in range(shots):
        which = rng.choice([i for i in range(len(clips)) if i != last])
        length = min(rng.randint(17, 45), len(clips[which]))
        start = rng.randint(0, len(clips[which]) - length)
        parts.append(clips[which][start : start + length])
        begun.append(begun[-1] + len(parts[-2]) if begun else 0)
        last = which
    return torch.cat(parts), begun[1:]


def main() -> None:
    """Print a row a concatenation, and what clips by themselves gave."""
    parser = argparse.ArgumentParser(description="Recall and precision of scene cuts.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--heights", type=int, nargs="+", default=[128, 240])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    options = parser.parse_args()
    pipe = load_pipeline("tiny")
    for height in options.heights:
        clips = [read(clip, height, pipe.frame_multiple) for clip in options.clips]
        alone = [len(found(pipe, clip)) for clip in clips]
        say(f"{height}: {sum(alone)} reported in {len(clips)} single clips")
        sums = [0, 0, 0, 0]
        for seed in options.seeds:
            video, true = joined(clips, seed)
            reported = found(pipe, video)
            assert all(a < b for a, b in pairwise(reported))
            hits = sum(any(cut // 4 <= at <= cut // 4 + 1 for at in reported) for cut in true)
            right = sum(any(cut // 4 <= at <= cut // 4 + 1 for cut in true) for at in reported)
            counts = (hits, len(true), right, len(reported))
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
            say(
                f"{height}, seed {seed}: found {hits} of {len(true)}, "
                f"right {right} of {len(reported)}",
            )
        say(
            f"{height}, all seeds: found {sums[0]} of {sums[1]}, right {sums[2]} of {sums[3]}",
        )


if __name__ == "__main__":
    main()
