"""Encoding and decoding of blocks of which a share is active, beside everything.

Streams through one autoencoder take turns, a block each: one that is never asked for less than
everything, and one for each share, of whose latent frames that share is active. What changed are
spots of patches (2x2 cells) that wander, grown by the reach. Medians over blocks in milliseconds,
and the ratio to the first stream. With a share of 1 everything is computed, and kept for a block
that asks for less.

Run as ``python -m benchmarks.autoencoder [--model tiny] [--size 416x240] [--active .1 .35 .5 1]``;
the model ``published`` has the published shape of the tiny autoencoder and random weights.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import say
from stillframe.autoencoders.activity import active
from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.meter import typed
from stillframe.loading.load import load_pipeline
from stillframe.loading.taehv import TAEW_CONFIG

_BLOCK = 3  # latent frames
_PATCH = 2  # cells a side of what a transformer computes or reuses
_SPOT = 4  # patches a side, about


def changes(share: float, blocks: int, h: int, w: int) -> list[Tensor]:
    """What changed (1, S, h, w), block after block, so that about a share of cells is active."""
    random = torch.Generator().manual_seed(0)
    count, rows, columns = blocks * _BLOCK, -(-h // _PATCH), -(-w // _PATCH)
    noise = torch.rand(1, 1, count + 2, rows + _SPOT - 1, columns + _SPOT - 1, generator=random)
    smooth = F.avg_pool3d(noise, (3, _SPOT, _SPOT), 1)[0]

    def above(level: float) -> Tensor:
        chosen = smooth >= smooth.quantile(level)
        cells = chosen.repeat_interleave(_PATCH, 2).repeat_interleave(_PATCH, 3)
        return cells[:, :, :h, :w]

    low, high = 0.0, 1.0
    for _ in range(20):  # the more of it is above, the more is active
        level = (low + high) / 2
        if active(above(level)).float().mean() > share:
            low = level
        else:
            high = level
    return list(above(high if share < 1 else 0.0).split(_BLOCK, 1))


class _Course:
    """One stream and its times."""

    def __init__(self, vae: Any, asked: list[Tensor | None]) -> None:
        self._stream: StreamingAutoencoder = open_autoencoder(vae, _BLOCK)
        self._asked = asked
        self.encode: list[float] = []
        self.decode: list[float] = []

    def run(self, number: int, frames: Tensor, latents: Tensor) -> None:
        """A block."""
        asked = self._asked[number]
        count = self._stream.next_frames
        start = time.perf_counter()
        self._stream.encode_block(frames[:, :count], asked)
        between = time.perf_counter()
        self._stream.decode(latents, asked)
        end = time.perf_counter()
        self.encode.append(1000 * (between - start))
        self.decode.append(1000 * (end - between))


@torch.inference_mode()
def measure(vae: Any, options: argparse.Namespace) -> list[dict[str, float]]:
    """A row a share; the first one, of share 1, is the stream that asks for nothing."""
    width, height = map(int, options.size.split("x"))
    spatial = open_autoencoder(vae, _BLOCK).timeline.spatial
    h, w, blocks = height // spatial, width // spatial, options.blocks + options.warm
    nothing: list[Tensor | None] = [None] * blocks
    courses = [_Course(vae, nothing)]
    shares = [1.0]
    for share in options.active:
        asked = changes(share, blocks, h, w)
        shares.append(float(active(torch.cat(asked[options.warm :], 1)).float().mean()))
        courses.append(_Course(vae, [*asked]))
    random = torch.Generator().manual_seed(1)
    for number in range(blocks):
        frames = torch.rand(1, 4 * _BLOCK, 3, height, width, generator=random)
        latents = torch.randn(1, vae.config.latent_channels, _BLOCK, h, w, generator=random)
        frames, latents = frames.to(vae.device, vae.dtype), latents.to(vae.device, vae.dtype)
        for course in courses:
            course.run(number, frames, latents)
    rows = []
    for share, course in zip(shares, courses, strict=True):
        row = {"active": share}
        for name in ("encode", "decode"):
            took = getattr(course, name)[options.warm :]
            dense = getattr(courses[0], name)[options.warm :]
            row |= {name: median(took), f"{name}_ratio": median(took) / median(dense)}
        rows.append(row)
    return rows


def _autoencoder(options: argparse.Namespace) -> Any:
    if options.model == "published":
        torch.manual_seed(0)
        return typed(TinyVideoAutoencoder(**TAEW_CONFIG), torch.float32).to(options.device)
    return load_pipeline(options.model, device=options.device).vae


def main() -> None:
    """Print a row a share, and JSON."""
    parser = argparse.ArgumentParser(description="Blocks of which a share is active.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--size", default="416x240")
    parser.add_argument("--active", type=float, nargs="+", default=[0.1, 0.35, 0.5, 1.0])
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--warm", type=int, default=2, help="blocks before those that count")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(_autoencoder(options), options)
    say(f"{'active':>8}{'encode ms':>12}{'ratio':>8}{'decode ms':>12}{'ratio':>8}")
    for row in rows:
        line = f"{row['active']:8.2f}{row['encode']:12.1f}{row['encode_ratio']:8.2f}"
        say(f"{line}{row['decode']:12.1f}{row['decode_ratio']:8.2f}")
    say(json.dumps({"what": "autoencoder", **vars(options), "rows": rows}))


if __name__ == "__main__":
    main()
