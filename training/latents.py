"""Latents of every training clip in every style, computed once with the trained autoencoder.

A clip is enlarged to cover 240x416 (or 416x240) where it is smaller, some clips are also stored
half as large again, so that wide and tall crops exist; about half are mirrored. The filters see
the very pixels that the encoder sees.

This file knows nothing of captions or of the transformer.

Run as ``python -m training.latents --clips DIR --vae DIR --state DIR``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.data import load_clips, read_clips, weights
from training.filters import FILTERS, apply_style
from training.loop import load_checkpoint, say, write_checkpoint

__all__ = ["STYLE_NAMES", "cover", "encode_styles", "load_latents", "sides"]

STYLE_NAMES = tuple(FILTERS)
"""Order of the styles in the stored latents; the first one, "photo", is the source."""

_SHORT, _LONG = 240, 416


def sides(height: int, width: int, zoom: float) -> tuple[int, int]:
    """Height and width, in eights, at which a clip covers 240x416 (or 416x240), times zoom."""
    need = (_SHORT, _LONG) if width >= height else (_LONG, _SHORT)
    scale = zoom * max(1.0, need[0] / height, need[1] / width)
    grow = (int(side * scale + 0.5) // 8 * 8 for side in (height, width))
    tall, wide = (max(got, int(want * zoom)) for got, want in zip(grow, need, strict=True))
    return tall, wide


def cover(clip: Tensor, zoom: float, mirror: bool) -> Tensor:
    """Clip (T, 3, H, W) uint8 -> float in [0, 1], resized or cropped to ``sides``, T in fours."""
    height, width = clip.shape[-2:]
    tall, wide = sides(height, width, zoom)
    frames = clip[: len(clip) // 4 * 4].float() / 255
    if tall > height or wide > width:
        frames = F.interpolate(frames, (tall, wide), mode="bicubic", antialias=True).clamp(0, 1)
    frames = frames[..., :tall, :wide]
    return frames.flip(-1) if mirror else frames


@torch.no_grad()
def encode_styles(vae: TinyVideoAutoencoder, frames: Tensor) -> Tensor:
    """Normalised latents of ``frames`` (T, 3, H, W) in every style: (K, F, C, h, w) float16."""
    dtype = next(vae.parameters()).dtype
    latents = []
    for name in STYLE_NAMES:
        restyled = apply_style(name, frames).to(dtype, memory_format=torch.channels_last)
        latents.append(vae.encode(restyled[None])[0].transpose(0, 1).half())
    return torch.stack(latents)


def entries(
    clips: Sequence[Tensor], odds: Sequence[float], large: int
) -> Iterator[tuple[Tensor, float, float]]:
    """All (clip, zoom, odds) to store: every clip once, and ``large`` of them enlarged as well."""
    rng = random.Random(0)
    for clip, weight in zip(clips, odds, strict=True):
        yield clip, 1.0, weight
    for i in rng.sample(range(len(clips)), min(large, len(clips))):
        yield clips[i][:72], 1.5, odds[i]


def load_latents(folder: Path, device: torch.device) -> tuple[list[Tensor], list[float]]:
    """What this file's command stored: latents (K, F, C, h, w) of each entry, and their odds.

    Raises:
        ValueError: if the command has not run yet.
    """
    state = load_checkpoint(folder / "latents.pt", device)
    if state is None:
        raise ValueError(f"{folder} holds no latents: run training.latents first")
    return state["latents"], state["odds"]


def main() -> None:
    """Encode all clips in all styles and store the latents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--state", type=Path, required=True, help="folder for the latents")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, help="use only so many clips")
    parser.add_argument("--large", type=int, default=48, help="clips stored enlarged, too")
    options = parser.parse_args()
    device = torch.device(options.device)
    listed = read_clips()[: options.limit]
    started = time.monotonic()
    clips = load_clips(options.clips, listed, device)
    say(f"{len(clips)} clips decoded in {time.monotonic() - started:.0f} s")
    vae = TinyVideoAutoencoder.from_pretrained(options.vae).to(
        device,
        torch.float16 if device.type == "cuda" else torch.float32,
        memory_format=torch.channels_last,
    )
    rng = random.Random(0)
    latents, odds = [], []
    for clip, zoom, weight in entries(clips, weights(listed), options.large):
        latents.append(encode_styles(vae, cover(clip, zoom, rng.random() < 0.5)))
        odds.append(weight)
        if len(latents) % 50 == 0:
            say(f"{len(latents)} entries at {time.monotonic() - started:.0f} s")
    write_checkpoint({"latents": latents, "odds": odds}, options.state / "latents.pt")
    size = sum(entry.numel() for entry in latents) * 2 / 1e9
    say(f"{len(latents)} entries, {size:.2f} GB, in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
