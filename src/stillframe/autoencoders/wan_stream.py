"""A stream through Wan's own autoencoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline

__all__ = ["WanStream"]


class WanStream(StreamingAutoencoder):
    """A stream through diffusers' ``AutoencoderKLWan``, with feature caches of its own.

    Wan's first latent frame stands for a single pixel frame, every later one for four.
    """

    @staticmethod
    def timeline_of(vae: AutoencoderKLWan, block_frames: int) -> Timeline:
        factors = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial
        # the decoder makes 1 frame of the first latent, 4 of the others: nothing is left to trim
        return Timeline(*factors, block_frames, pad=factors[0] - 1)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def reset(self) -> None:
        super().reset()
        counts = self.vae._cached_conv_counts
        self._encoder_cache: list[Tensor | None] = [None] * counts["encoder"]
        self._decoder_cache: list[Tensor | None] = [None] * counts["decoder"]

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        shape = (1, -1, 1, 1, 1)
        return (
            like.new_tensor(config.latents_mean).view(shape),
            like.new_tensor(config.latents_std).view(shape),
        )

    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        vae = self.vae
        x = frames.to(vae.device, vae.dtype).transpose(1, 2) * 2 - 1
        if vae.config.patch_size is not None:
            x = patchify(x, vae.config.patch_size)
        out = []
        for piece in _pieces(x, 1 if first else 0, self.timeline.temporal):
            out.append(vae.encoder(piece, feat_cache=self._encoder_cache, feat_idx=[0]))
        mean_of_posterior = vae.quant_conv(torch.cat(out, 2)).chunk(2, dim=1)[0]
        mean, std = self._statistics(mean_of_posterior)
        return (mean_of_posterior - mean) / std

    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        vae = self.vae
        mean, std = self._statistics(latents)
        x = vae.post_quant_conv((latents * std + mean).to(vae.dtype))
        out = []
        for i in range(x.shape[2]):
            start = {"first_chunk": True} if first and i == 0 else {}
            frame = x[:, :, i : i + 1]
            out.append(vae.decoder(frame, feat_cache=self._decoder_cache, feat_idx=[0], **start))
        frames = torch.cat(out, 2)
        if vae.config.patch_size is not None:
            frames = unpatchify(frames, vae.config.patch_size)
        return (frames.clamp(-1, 1).transpose(1, 2) + 1) / 2


def _pieces(x: Tensor, head: int, size: int) -> list[Tensor]:
    """Split (B, C, T, H, W) along time: ``head`` frames first, then ``size`` at a time."""
    cuts = [0, head] if head else [0]
    cuts += range(head + size, x.shape[2] + 1, size)
    return [x[:, :, a:b] for a, b in pairwise(cuts)]
