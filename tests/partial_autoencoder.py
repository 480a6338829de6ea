"""A slow reference of partial encoding and decoding: whole layers, of which active cells are kept.

It computes everything, by the model's own layers, and keeps of each 3x3 convolution's result what
lies in active cells; elsewhere the result stays as it was in the latent frame before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.tiny import (
    MemoryBlock,
    TemporalGrow,
    TemporalPool,
    TinyVideoAutoencoder,
)


class Kept:
    """What a stream's layers keep between latent frames, in the order in which they run."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.pasts: list[Tensor] = []
        self.turn = [0, 0]

    def begin(self, cells: Tensor) -> None:
        """Begin a latent frame with these active cells, (B, h, w) bool."""
        self.cells, self.turn = cells, [0, 0]

    def keep(self, made: Tensor) -> Tensor:
        """What a layer's map is after it made this, (T*B, C, H, W)."""
        place, side = self.turn[0], made.shape[2] // self.cells.shape[1]
        mask = self.cells.repeat_interleave(side, 1).repeat_interleave(side, 2)
        mask = mask.repeat(len(made) // len(mask), 1, 1).unsqueeze(1)
        self.turn[0] += 1
        if place == len(self.maps):
            self.maps.append(made)
        self.maps[place] = torch.where(mask, made, self.maps[place])
        return self.maps[place]

    def past(self, x: Tensor, batch: int) -> Tensor:
        """The frame before the first of ``x``, whose last one is to come before the next."""
        place = self.turn[1]
        self.turn[1] += 1
        if place == len(self.pasts):
            self.pasts.append(torch.zeros_like(x[:batch]))
        before = self.pasts[place]
        self.pasts[place] = x[-batch:].clone()
        return before


def _run(layers: nn.Sequential, x: Tensor, kept: Kept, batch: int) -> Tensor:
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            first, second, third = (part for part in layer.conv if isinstance(part, nn.Conv2d))
            past = torch.cat([kept.past(x, batch), x[:-batch]])
            y = kept.keep(first(torch.cat([x, past], 1)).relu())
            y = kept.keep(second(y).relu())
            x = kept.keep((third(y) + x).relu())
        elif isinstance(layer, TemporalPool | TemporalGrow):
            x = layer(x, batch)
        elif isinstance(layer, nn.Conv2d):
            x = kept.keep(layer(x))
        elif isinstance(layer, nn.ReLU):
            x = x.relu()
        else:
            x = layer(x)
    return x


class PartialReference:
    """One direction of a stream; called as ``FusedEncoder`` and ``FusedDecoder`` are."""

    def __init__(self, vae: TinyVideoAutoencoder, decode: bool) -> None:
        self.vae, self.decode = vae, decode
        self.kept, self.refined = Kept(), Kept()

    def __call__(self, block: Tensor, changed: Tensor | None) -> Tensor:
        times = self.vae.temporal_factor
        parts = block.split(1, 2) if self.decode else block.split(times, 1)
        factor = 1 if self.decode else self.vae.spatial_factor
        h, w = block.shape[3] // factor, block.shape[4] // factor
        if changed is None:
            shape = len(block), len(parts), h, w
            changed = torch.ones(shape, dtype=torch.bool, device=block.device)
        cells = F.max_pool2d(changed.float(), 3, 1, 1) > 0
        one = self._decoded if self.decode else self._encoded
        return torch.cat(
            [one(part, cells[:, k]) for k, part in enumerate(parts)], 1 if self.decode else 2
        )

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        channels = config["latent_channels"]
        mean = like.new_tensor(config["latents_mean"] or [0.0] * channels)
        std = like.new_tensor(config["latents_std"] or [1.0] * channels)
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def _encoded(self, frames: Tensor, cells: Tensor) -> Tensor:
        self.kept.begin(cells)
        x = F.pixel_unshuffle(frames.transpose(0, 1).flatten(0, 1), self.vae.patch_size)
        z = _run(self.vae.encoder, x, self.kept, len(frames))
        mean, std = self._statistics(z)
        return ((z - mean) / std).unsqueeze(2)

    def _decoded(self, latents: Tensor, cells: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        self.kept.begin(cells)
        y = _run(self.vae.decoder, latents[:, :, 0] * std + mean, self.kept, len(latents))
        y = F.pixel_shuffle(y, self.vae.patch_size)
        if self.vae.refine is not None:
            self.refined.begin(cells)
            halves = self.refined.keep(F.pixel_unshuffle(y, 2))
            y = y + F.pixel_shuffle(_run(self.vae.refine, halves, self.refined, len(latents)), 2)
        return y.clamp(0, 1).unflatten(0, (-1, len(latents))).transpose(0, 1)
