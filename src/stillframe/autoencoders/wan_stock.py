"""Wan's autoencoders through diffusers' modules: everything, whichever kind, and the reference."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

__all__ = ["StockCoder"]


class StockCoder:
    """One stream through diffusers' ``AutoencoderKLWan``, with feature caches of its own.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae = vae
        counts = vae._cached_conv_counts
        self._encoder_cache: list[Tensor | None] = [None] * counts["encoder"]
        self._decoder_cache: list[Tensor | None] = [None] * counts["decoder"]

    def encode(self, x: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to means (B, C, S, h, w)."""
        vae = self._vae
        if vae.config.patch_size is not None:
            x = patchify(x, vae.config.patch_size)
        out = []
        for piece in _pieces(x, 1 if first else 0, vae.config.scale_factor_temporal):
            out.append(vae.encoder(piece, feat_cache=self._encoder_cache, feat_idx=[0]))
        return vae.quant_conv(torch.cat(out, 2)).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        """(B, C, S, h, w), as `encode` makes them, to (B, 3, T, H, W) in about [-1, 1]."""
        vae = self._vae
        x = vae.post_quant_conv(latents)
        out = []
        for i in range(x.shape[2]):
            start = {"first_chunk": True} if first and i == 0 else {}
            frame = x[:, :, i : i + 1]
            out.append(vae.decoder(frame, feat_cache=self._decoder_cache, feat_idx=[0], **start))
        frames = torch.cat(out, 2)
        if vae.config.patch_size is not None:
            frames = unpatchify(frames, vae.config.patch_size)
        return frames


def _pieces(x: Tensor, head: int, size: int) -> list[Tensor]:
    """Split (B, C, T, H, W) along time: ``head`` frames first, then ``size`` at a time."""
    cuts = [0, head] if head else [0]
    cuts += range(head + size, x.shape[2] + 1, size)
    return [x[:, :, a:b] for a, b in pairwise(cuts)]
