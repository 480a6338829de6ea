"""What coding only what changed leaves different, inside of what is shown anew.

Clips are edited with default settings. Beside the stream's autoencoder, which codes what changed, a
second one codes the same frames and the same latents whole. A row has the difference between the
two, where patches were computed or moved: of pixels, the largest of three colours, in grey levels
of 255; of latents, what the decoder makes of them, in the same unit (`channel_gains`). Blocks that
are computed whole do not count.

Run as ``python -m benchmarks.coding_error CLIP... [--prompts photo oil] [--frames 60]``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import say
from benchmarks.live import read_clip
from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.loading.load import load_pipeline

_RANKS = (0.5, 0.99, 0.999, 1.0)


class _Watched:
    """A stream's autoencoder, compared with one that codes everything."""

    def __init__(self, own: StreamingAutoencoder, whole: StreamingAutoencoder) -> None:
        self.pixels: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.shares: list[float] = []
        self._encode, self._decode, self._whole = own.encode_block, own.decode, whole
        self._gains, self._spatial = own.channel_gains(), own.timeline.spatial
        own.encode_block, own.decode = self.encode_block, self.decode  # type: ignore[method-assign]

    def encode_block(self, frames: Tensor, changed: Tensor | None = None) -> Tensor:
        got, wanted = self._encode(frames, changed), self._whole.encode_block(frames)
        if changed is not None:
            apart = (got - wanted).movedim(1, -1) @ self._gains
            self.latents.append(apart.square().mean(-1).sqrt()[changed])
        return got

    def decode(self, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        got, wanted = self._decode(latents, changed), self._whole.decode(latents)
        if changed is not None:
            cells = changed.repeat_interleave(got.shape[1] // changed.shape[1], 1)
            places = cells.repeat_interleave(self._spatial, 2).repeat_interleave(self._spatial, 3)
            self.pixels.append(255 * (got - wanted).abs().amax(2)[places])
            self.shares.append(float(changed.float().mean()))
        return got


def _ranked(parts: list[Tensor]) -> list[float]:
    values = torch.cat([*parts, torch.zeros(1)]).sort().values
    return [round(float(values[int(rank * (len(values) - 1))]), 2) for rank in _RANKS]


def measure(pipe: Any, clip: Path, prompt: str, frames: int) -> dict[str, Any]:
    """One clip in one style."""
    pixels = torch.from_numpy(read_clip(clip, 416, 240)[:frames]).permute(0, 3, 1, 2).unsqueeze(0)
    stream = pipe.stream(prompt, generator=torch.Generator().manual_seed(0))
    whole = open_autoencoder(pipe.vae, pipe.config.block_frames)
    watched = _Watched(stream._autoencoder, whole)
    with torch.inference_mode():
        for block in pixels.split(12, 1):
            stream.push(block)
    share = sum(watched.shares) / max(len(watched.shares), 1)
    found = {"pixels": _ranked(watched.pixels), "latents": _ranked(watched.latents)}
    return {"clip": clip.stem, "prompt": prompt, "shown_anew": round(share, 3), **found}


def main() -> None:
    """Print a table and JSON."""
    parser = argparse.ArgumentParser(description="What coding only what changed leaves different.")
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--prompts", nargs="+", default=["photo", "oil painting"])
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    pipe, rows = load_pipeline("tiny", device="cpu"), []
    say(
        f"{'':36}{'anew':>6}" + "".join(f"{name:>8}" for name in ("p50", "p99", "p99.9", "max")) * 2
    )
    for clip in options.clips:
        for prompt in options.prompts:
            row = measure(pipe, clip, prompt, options.frames)
            rows.append(row)
            numbers = "".join(f"{x:8.2f}" for x in (*row["pixels"], *row["latents"]))
            say(f"{clip.stem:<23} {prompt:<12}{row['shown_anew']:6.2f}{numbers}")
    say(json.dumps({"what": "coding error", "rows": rows}))


if __name__ == "__main__":
    main()
