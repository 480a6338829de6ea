"""A stream through Wan's own autoencoder."""

from __future__ import annotations

from diffusers import AutoencoderKLWan
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.wan_fused import FusedCoder, FusedWan
from stillframe.autoencoders.wan_stock import StockCoder

__all__ = ["WanStream"]


class WanStream(StreamingAutoencoder):
    """A stream through diffusers' ``AutoencoderKLWan``, with memory of its own.

    Wan's first latent frame stands for a single pixel frame, every later one for four. Wan 2.1's
    kind leaves out what did not change; Wan 2.2's is always computed whole.
    """

    # how far a change reaches with the published weights has not been measured
    changed_alone = False

    @staticmethod
    def timeline_of(vae: AutoencoderKLWan, block_frames: int) -> Timeline:
        factors = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial
        # the decoder makes 1 frame of the first latent, 4 of the others: nothing is left to trim
        return Timeline(*factors, block_frames, pad=factors[0] - 1)

    @property
    def captured(self) -> bool:
        return FusedWan.supports(self.vae)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def reset(self) -> None:
        super().reset()
        kind = FusedCoder if FusedWan.supports(self.vae) else StockCoder
        self._coder: FusedCoder | StockCoder = kind(self.vae)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        shape = (1, -1, 1, 1, 1)
        return (
            like.new_tensor(config.latents_mean).view(shape),
            like.new_tensor(config.latents_std).view(shape),
        )

    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        x = frames.to(self.vae.device, self.vae.dtype).transpose(1, 2) * 2 - 1
        means = self._coder.encode(x, changed, first)
        mean, std = self._statistics(means)
        return (means - mean) / std

    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        mean, std = self._statistics(latents)
        x = (latents * std + mean).to(self.vae.dtype)
        frames = self._coder.decode(x, changed, first)
        return (frames.clamp(-1, 1).transpose(1, 2) + 1) / 2
