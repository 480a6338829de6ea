"""A stream through the tiny autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.derived import derived
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_blocks import DECODING, ENCODING, BlockCoder, WholeBlocks
from stillframe.autoencoders.tiny_fused import FusedAutoencoder, FusedDecoder, FusedEncoder
from stillframe.autoencoders.tiny_incremental import IncrementalDecoder, IncrementalEncoder
from stillframe.kernels.shared import CapturedStep, shared_workplace

__all__ = ["TinyStream", "captured_coders"]

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
        on_gpu = next(vae.parameters()).is_cuda
        if on_gpu and FusedAutoencoder.supports(vae):
            self._encoder, self._decoder = FusedEncoder(vae), FusedDecoder(vae)
        elif on_gpu:
            self._encoder, self._decoder = captured_coders(vae)
        else:
            self._encoder = IncrementalEncoder(vae, most)
            self._decoder = IncrementalDecoder(vae, most)

    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        return self._encoder(frames.to(self.vae.device, self.vae.dtype), changed)

    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        return self._decoder(latents.to(self.vae.dtype), changed)


def captured_coders(vae: TinyVideoAutoencoder) -> tuple[WholeBlocks, WholeBlocks]:
    """The model's own modules as CUDA graphs: launching a hundred small kernels is what costs."""
    encode, decode = (_captured(vae, name) for name in ("encode_chunk", "decode_chunk"))
    latents = _PIXELS_AT_ONCE // (vae.temporal_factor * vae.spatial_factor**2)
    return WholeBlocks(encode, ENCODING, _PIXELS_AT_ONCE), WholeBlocks(decode, DECODING, latents)


class _Weights:
    """An autoencoder's weights as they are now."""


def _captured(vae: TinyVideoAutoencoder, name: str) -> CapturedStep:
    """A method of the autoencoder as graphs that all its streams share."""
    weights, step = derived(vae, "weights", _Weights), getattr(vae, name)
    return CapturedStep(step, lambda shapes: shared_workplace(weights, name, shapes, captures=True))
