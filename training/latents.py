"""Latents of every training clip in every style, computed once with the trained autoencoder.

A clip is enlarged to cover 240x416 (or 416x240) where it is smaller, some clips are also stored
half as large again, so that wide and tall crops exist; about half are mirrored. The filters see
the very pixels that the encoder sees.

With them goes by how much each channel changes the decoded picture, for the transformer's loss: in
normalised latents all channels are of one size, and what is seen of them is not.

This file knows nothing of captions or of the transformer.

Run as ``python -m training.latents --clips DIR --vae DIR --state DIR``; under ``torchrun``, cards
share the clips.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.data import load_clips, read_clips, weights
from training.filters import FILTERS, apply_style
from training.loop import load_checkpoint, say, write_checkpoint
from training.ranks import Ranks

__all__ = [
    "STYLE_NAMES",
    "Latents",
    "channel_sensitivity",
    "cover",
    "encode_styles",
    "load_latents",
    "sides",
]

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


@torch.no_grad()
def channel_sensitivity(vae: TinyVideoAutoencoder, latents: Tensor, nudge: float = 0.3) -> Tensor:
    """What decoded frames change by, mean square, when noise is added to one channel.

    Args:
        vae: the autoencoder.
        latents: normalised, (B, F, C, h, w).
        nudge: standard deviation of the noise.

    Returns:
        (C,), with a mean of 1.
    """
    plain = latents.transpose(1, 2)
    before = vae.decode(plain).float()
    changes = []
    for channel in range(plain.shape[1]):
        nudged = plain.clone()
        nudged[:, channel] += nudge * torch.randn_like(nudged[:, channel])
        changes.append((vae.decode(nudged).float() - before).square().mean())
    found = torch.stack(changes)
    return found / found.mean()


class Latents(NamedTuple):
    """What this file's command stores.

    Attributes:
        entries: latents (K, F, C, h, w) of each entry, styles first.
        odds: how often each is drawn, relatively.
        sensitivity: (C,), see `channel_sensitivity`.
    """

    entries: list[Tensor]
    odds: list[float]
    sensitivity: Tensor


def load_latents(folder: Path, device: torch.device) -> Latents:
    """What this file's command stored.

    Raises:
        ValueError: if the command has not run yet.
    """
    entries: list[Tensor] = []
    odds: list[float] = []
    sensitivity = torch.ones(1)
    for path in sorted(folder.glob("latents-*.pt")):
        state = load_checkpoint(path, device)
        assert state is not None
        entries += state["latents"]
        odds += state["odds"]
        sensitivity = state["sensitivity"]  # of one part of the clips as of another
    if not entries:
        raise ValueError(f"{folder} holds no latents: run training.latents first")
    return Latents(entries, odds, sensitivity)


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
    ranks = Ranks(options.device)
    device, listed = ranks.device, read_clips()[: options.limit]
    if ranks.first:
        # of another autoencoder, or of more cards
        for old in options.state.glob("latents-*.pt"):
            old.unlink()
    ranks.wait()
    started = time.monotonic()
    clips = load_clips(options.clips, listed, device)
    say(f"{len(clips)} clips decoded in {time.monotonic() - started:.0f} s")
    vae = TinyVideoAutoencoder.from_pretrained(options.vae).to(
        device,
        torch.float16 if device.type == "cuda" else torch.float32,
        memory_format=torch.channels_last,
    )
    rng = random.Random(0)
    wanted = [
        (*entry, rng.random() < 0.5) for entry in entries(clips, weights(listed), options.large)
    ]
    latents, odds = [], []
    for clip, zoom, weight, mirror in ranks.share(wanted):
        latents.append(encode_styles(vae, cover(clip, zoom, mirror)))
        odds.append(weight)
        if len(latents) % 50 == 0:
            say(f"{len(latents)} entries at {time.monotonic() - started:.0f} s")
    torch.manual_seed(0)
    # a part of another style of each of some clips
    sample = [entry[5 * i % len(entry), :3, :, :24, :24] for i, entry in enumerate(latents[:8])]
    sensitivity = channel_sensitivity(vae.float(), torch.stack(sample).float())
    write_checkpoint(
        {"latents": latents, "odds": odds, "sensitivity": sensitivity},
        options.state / f"latents-{ranks.rank}.pt",
    )
    size = sum(entry.numel() for entry in latents) * 2 / 1e9
    say(f"{len(latents)} entries, {size:.2f} GB, in {time.monotonic() - started:.0f} s")
    ranks.wait()


if __name__ == "__main__":
    main()
