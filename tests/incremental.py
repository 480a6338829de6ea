"""The tiny autoencoder where only some cells are active, slowly: what defines its results.

Latent frame by latent frame; every layer is computed whole, and taken over where cells are active.
What goes in is seen as it is, everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stillframe.autoencoders.activity import active
from stillframe.autoencoders.tiny import (
    MemoryBlock,
    TemporalGrow,
    TemporalPool,
    TinyVideoAutoencoder,
)

__all__ = ["Products", "SlowAutoencoder"]


class SlowAutoencoder:
    """A stream, in both directions; blocks as `StreamingAutoencoder` has them."""

    def __init__(self, vae: TinyVideoAutoencoder) -> None:
        self.vae = vae
        # by layer: its frames of the latest latent frame
        self._maps: dict[object, list[Tensor]] = {}

    def encode(self, frames: Tensor, changed: Tensor | None) -> Tensor:
        """(B, T, 3, H, W) to normalised latents (B, C, S, h, w)."""
        out = []
        for k, four in enumerate(frames.split(4, 1)):
            cells = None if changed is None else active(changed[:, k])
            folded = [F.pixel_unshuffle(x, self.vae.patch_size) for x in four.unbind(1)]
            (latents,) = self._layers(self.vae.encoder, folded, cells)
            mean, std = self.vae.statistics(latents)
            out.append((latents - mean[0]) / std[0])
        return torch.stack(out, 2)

    def decode(self, latents: Tensor, changed: Tensor | None) -> Tensor:
        """(B, C, S, h, w) to frames (B, T, 3, H, W)."""
        out = []
        mean, std = self.vae.statistics(latents)
        for k, frame in enumerate(latents.unbind(2)):
            cells = None if changed is None else active(changed[:, k])
            frames = self._layers(self.vae.decoder, [frame * std[0] + mean[0]], cells)
            frames = [F.pixel_shuffle(x, self.vae.patch_size) for x in frames]
            if self.vae.refine is not None:
                halves = [F.pixel_unshuffle(x, 2) for x in frames]
                added = self._layers(self.vae.refine, halves, cells)
                frames = [x + F.pixel_shuffle(y, 2) for x, y in zip(frames, added, strict=True)]
                # the sum is in place, too: what lies between may have been written since
                frames = self._kept("frames", frames, cells)
            out += [x.clamp(0, 1) for x in frames]
        return torch.stack(out, 1)

    def _kept(self, layer: object, frames: list[Tensor], cells: Tensor | None) -> list[Tensor]:
        """Frames where cells are active, and what the layer last gave elsewhere."""
        if cells is not None:
            side = frames[0].shape[-1] // cells.shape[-1]
            finer = cells.repeat_interleave(side, -1).repeat_interleave(side, -2).unsqueeze(1)
            before = self._maps[layer]
            frames = [torch.where(finer, x, y) for x, y in zip(frames, before, strict=True)]
        self._maps[layer] = frames
        return frames

    def _layers(
        self, layers: nn.Sequential, frames: list[Tensor], cells: Tensor | None
    ) -> list[Tensor]:
        for layer in layers:
            if isinstance(layer, MemoryBlock):
                frames = self._remember(layer, frames, cells)
                continue
            if isinstance(layer, TemporalPool):
                groups = [torch.cat(frames[i : i + layer.stride], 1)
                          for i in range(0, len(frames), layer.stride)]  # fmt: skip
                frames = [layer.conv(x) for x in groups]
            elif isinstance(layer, TemporalGrow):
                frames = [y for x in frames for y in layer.conv(x).chunk(layer.stride, 1)]
            elif isinstance(layer, nn.ReLU):
                frames = [x.clamp(min=0) for x in frames]
            else:
                frames = [layer(x) for x in frames]
            if layer is not self.vae.decoder[0]:  # the limit of latents, which are there whole
                frames = self._kept(layer, frames, cells)
        return frames

    def _remember(
        self, block: MemoryBlock, frames: list[Tensor], cells: Tensor | None
    ) -> list[Tensor]:
        # the frame before the first is the last one as it was before this latent frame
        last = self._maps.get((block, "past"), [torch.zeros_like(frames[0])])[-1]
        self._maps[block, "past"] = frames
        x = [torch.cat(pair, 1) for pair in zip(frames, [last, *frames[:-1]], strict=True)]
        for layer in block.conv:
            x = [y.clamp(min=0) if isinstance(layer, nn.ReLU) else layer(y) for y in x]
            x = self._kept((block, layer), x, cells)
        return self._kept(
            block, [(y + z).clamp(min=0) for y, z in zip(x, frames, strict=True)], cells
        )


class Products(TorchDispatchMode):
    """Within the ``with`` block, counts convolutions and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kinds = ("convolution", "addmm", "mm")
        self.count += any(func.overloadpacket.__name__.startswith(kind) for kind in kinds)
        return func(*args, **(kwargs or {}))
