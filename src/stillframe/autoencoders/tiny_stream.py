"""A stream through the tiny autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_blocks import DECODING, ENCODING, BlockCoder, WholeBlocks
from stillframe.autoencoders.tiny_fused import FusedAutoencoder, FusedDecoder, FusedEncoder
from stillframe.autoencoders.tiny_incremental import IncrementalDecoder, IncrementalEncoder
from stillframe.kernels.graphs import CapturedStep

__all__ = ["TinyStream"]

# More pixels than this at once make the widest layers the largest thing in memory by far, and are
# no faster; less leaves a GPU idle. A block of 240x416 is below, one latent frame of 480x832 is.
_PIXELS_AT_ONCE = 2**21


class TinyStream(StreamingAutoencoder):
    """A stream through `TinyVideoAutoencoder`; large frames are coded a few at a time."""

    def __init__(self, vae: TinyVideoAutoencoder, block_frames: int) -> None:
        # convolutions run fastest with channels last, on CPUs and GPUs alike
        super().__init__(vae.to(memory_format=torch.channels_last), block_frames)

    @staticmethod
    def timeline_of(vae: TinyVideoAutoencoder, block_frames: int) -> Timeline:
        factors = vae.temporal_factor, vae.spatial_factor
        return Timeline(*factors, block_frames, trim=vae.frames_to_trim)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def reset(self) -> None:
        super().reset()
        vae, most = self.vae, _PIXELS_AT_ONCE
        self._encoder: BlockCoder
        self._decoder: BlockCoder
        if vae.device.type == "cuda" and FusedAutoencoder.supports(vae):
            self._encoder, self._decoder = FusedEncoder(vae), FusedDecoder(vae)
        elif vae.device.type == "cuda":
            # launching a hundred small kernels is what costs there
            encode, decode = CapturedStep(vae.encode_chunk), CapturedStep(vae.decode_chunk)
            self._encoder = WholeBlocks(encode, ENCODING, most)
            self._decoder = WholeBlocks(
                decode, DECODING, most // (vae.temporal_factor * vae.spatial_factor**2)
            )
        else:
            self._encoder = IncrementalEncoder(vae, most)
            self._decoder = IncrementalDecoder(vae, most)

    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        return self._encoder(frames.to(self.vae.device, self.vae.dtype), changed)

    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        return self._decoder(latents.to(self.vae.dtype), changed)
