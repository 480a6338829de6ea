"""Wan's autoencoder over buffers that stay, with the same weights: dense, or what changed only.

Not for Wan 2.2's residual kind, which goes through diffusers' modules (``wan_stream.py``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from stillframe.autoencoders.activity import active
from stillframe.autoencoders.derived import derived
from stillframe.autoencoders.wan_layers import (
    Layer,
    Level,
    Maps,
    Turn,
    decoder_layers,
    encoder_layers,
)
from stillframe.kernels.frames import ChosenCells, Frames
from stillframe.kernels.graphs import Graphs

__all__ = ["FusedCoder", "FusedWan", "WanCoder", "fused_wan"]


class FusedWan:
    """The layers of an autoencoder: one for all its streams.

    Args:
        vae: `supports` says yes to it.

    Attributes:
        encoder, decoder: layers.
        pixels: the level of pixels.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.decoder, self.pixels = decoder_layers(vae.decoder)
        self.encoder, _ = encoder_layers(vae.encoder, self.pixels.frames, self.pixels.side)

    @staticmethod
    def supports(vae: AutoencoderKLWan) -> bool:
        """Whether it is of the first kind, Wan 2.1's."""
        config = vae.config
        return not (config.is_residual or config.patch_size or config.dropout)


def fused_wan(vae: AutoencoderKLWan) -> FusedWan:
    """The layers of an autoencoder: one set for all its streams."""
    return derived(vae, "fused", lambda: FusedWan(vae))


class FusedCoder:
    """One stream through an autoencoder's encoder and decoder.

    Args:
        vae: `FusedWan.supports` says yes to it.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae: Any = vae
        self._encoder: WanCoder | None = None
        self._decoder: WanCoder | None = None
        self._shared: dict[object, Frames] = {}

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        own = sum(x.maps.size for x in (self._encoder, self._decoder) if x is not None)
        return own + sum(x.base.nbytes for x in self._shared.values())

    @torch.no_grad()
    def encode(self, x: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to means (B, C, S, h, w)."""
        if first or self._encoder is None:
            fused = fused_wan(self._vae)
            batch, _, _, height, width = x.shape
            side = fused.pixels.side
            shape = batch, height // side, width // side
            self._encoder = WanCoder(fused.encoder, fused.pixels, shape, x, self._shared)
        moments = self._encoder(x.permute(0, 2, 3, 4, 1), changed)
        self._release()
        return _mixed(self._vae.quant_conv, moments)[..., : self._vae.config.z_dim].permute(
            0, 4, 1, 2, 3
        )

    @torch.no_grad()
    def decode(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        """(B, C, S, h, w), as `encode` makes them, to (B, 3, T, H, W) in about [-1, 1]."""
        if first or self._decoder is None:
            batch, _, _, h, w = latents.shape
            layers = fused_wan(self._vae).decoder
            shape = batch, h, w
            self._decoder = WanCoder(layers, Level(1, 1), shape, latents, self._shared)
        x = _mixed(self._vae.post_quant_conv, latents.permute(0, 2, 3, 4, 1))
        frames = self._decoder(x, changed).permute(0, 4, 1, 2, 3)
        self._release()
        return frames

    def _release(self) -> None:
        """Let shared buffers go when nobody uses them any more."""
        if all(x is not None and x.maps.kept for x in (self._encoder, self._decoder)):
            self._shared.clear()


def _mixed(conv: Any, x: Tensor) -> Tensor:
    """A convolution of single pixels, of channels that come last."""
    # as loaded from a file, weights may lie where products round another way
    return F.linear(x, conv.weight.flatten(1).clone(), conv.bias)


# On a CPU, gathering the rows of more cells than this takes longer than computing all of them: on
# one core, rows of .73 of the cells took 1.04 times as long, those of .25 a third.
_MOST_ROWS = 0.7


class WanCoder:
    """One stream through an encoder or a decoder: blocks of latent frames, in order.

    Args:
        layers: of the encoder or decoder.
        level: of what goes in.
        shape: B, h, w of latent frames.
        like: of dtype and on the device of the weights.
        shared: see `Maps`.
    """

    def __init__(
        self,
        layers: list[Layer],
        level: Level,
        shape: tuple[int, int, int],
        like: Tensor,
        shared: dict[object, Frames],
    ) -> None:
        self._layers, self._level = layers, level
        self.maps = Maps(shape, like.new_empty(0), shared)
        self._graphs, self._given = Graphs(), dict[object, tuple[Tensor, Tensor | None]]()
        with torch.inference_mode(False):
            # where the last latent frame was computed, and the one before
            self._before = torch.ones(2, *shape, device=like.device, dtype=torch.bool)
        self._done = 0

    @torch.no_grad()
    def __call__(self, x: Tensor, changed: Tensor | None) -> Tensor:
        """Code the next block.

        Args:
            x: (B, T, H, W, C), of the weights' dtype; the stream's first latent frame is one frame.
            changed: (B, S, h, w) bool, see `StreamingAutoencoder`; None for everything.

        Returns:
            (B, T', H', W', C').
        """
        # the maps of the first latent frame are of one frame only
        if self._done < 2:
            changed = None
        started, frames = self._done > 0, x.shape[1]
        begins = changed is not None and not self.maps.kept
        if begins:
            # this block is still computed whole: there are no maps before it
            self.maps.kept = True
            self._graphs, changed = Graphs(), None
        self._done += (frames if started else frames - 1 + self._level.frames) // self._level.frames
        if not started or begins or not x.is_cuda:
            return self._work(x, changed, not started)
        return self._captured(x, changed).clone()

    def _captured(self, x: Tensor, changed: Tensor | None) -> Tensor:
        key = x.shape, changed is None
        if key not in self._given:
            with torch.inference_mode(False):
                self._given[key] = (
                    torch.empty_like(x, memory_format=torch.contiguous_format),
                    None if changed is None else torch.empty_like(changed, device=x.device),
                )
        given, cells = self._given[key]
        given.copy_(x)
        if cells is not None and changed is not None:
            cells.copy_(changed)
        result: Tensor = self._graphs.run(key, lambda: self._work(given, cells))
        return result

    def _work(self, x: Tensor, changed: Tensor | None, first: bool = False) -> Tensor:
        out = []
        head = 1 if first else self._level.frames
        pieces = [x[:, :head], *x[:, head:].split(self._level.frames, 1)]
        for k, piece in enumerate(part for part in pieces if part.shape[1]):
            turn = self._turn(None if changed is None else changed[:, k], first and k == 0)
            frames = Frames(piece)
            for layer in self._layers:
                frames = layer(frames, turn)
            out.append(frames.latest.clone())
        return torch.cat(out, 1)

    def _turn(self, changed: Tensor | None, first: bool) -> Turn:
        last, before = self._before
        now = None if changed is None else active(changed)
        if now is None or (now.is_cpu and now.float().mean() > _MOST_ROWS):
            before.copy_(last)
            last.fill_(True)
            return Turn(self.maps, first)
        turn = Turn(self.maps, first, ChosenCells.of(now), ChosenCells.of(now | last | before))
        before.copy_(last)
        last.copy_(now)
        return turn
