"""A stream through the tiny autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import Memory, TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import FusedAutoencoder, FusedDecoder, FusedEncoder
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
        self._encoder_memory: Memory | None = None
        self._decoder_memory: Memory | None = None
        # comparing waits for the device, which on a GPU costs more than it saves; there, launching
        # a hundred small kernels is what costs
        kinds = {"cpu": _Remembered, "cuda": CapturedStep}
        faster: Any = kinds.get(self.vae.device.type, lambda step: step)
        self._fused: tuple[FusedEncoder, FusedDecoder] | None = None
        if self.vae.device.type == "cuda" and FusedAutoencoder.supports(self.vae):
            self._fused = FusedEncoder(self.vae), FusedDecoder(self.vae)
        self._encode_chunk = faster(self.vae.encode_chunk)
        self._decode_chunk = faster(self.vae.decode_chunk)

    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        if self._fused is not None:
            return self._fused[0](frames, changed)
        frames = frames.to(self.vae.device, self.vae.dtype)
        batch, _, _, height, width = frames.shape
        parts = []
        for part in frames.split(self.timeline.temporal * self._at_once(batch * height * width), 1):
            latents, self._encoder_memory = self._encode_chunk(part, self._encoder_memory)
            parts.append(latents)
        return torch.cat(parts, 2)

    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor:
        if self._fused is not None:
            return self._fused[1](latents, changed)
        latents = latents.to(self.vae.dtype)
        batch, _, _, h, w = latents.shape
        parts = []
        for part in latents.split(self._at_once(batch * h * w * self.timeline.spatial**2), 2):
            frames, self._decoder_memory = self._decode_chunk(part, self._decoder_memory)
            parts.append(frames)
        return torch.cat(parts, 1)

    def _at_once(self, pixels: int) -> int:
        """Latent frames to code at once, given the pixels of a frame."""
        return max(1, _PIXELS_AT_ONCE // (self.timeline.temporal * pixels))


class _Remembered:
    """A step of the autoencoder that answers from memory when its input is the same again.

    Where nothing changes for a few blocks, input and what the layers remember come round exactly,
    and so must the output.
    """

    def __init__(self, step: Callable[[Tensor, Memory | None], tuple[Tensor, Memory]]) -> None:
        self._step = step
        self._input: tuple[Tensor, Memory | None] | None = None
        self._answer: tuple[Tensor, Memory] | None = None

    def __call__(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        if self._answer is None or not self._again(x, memory):
            self._input, self._answer = (x, memory), self._step(x, memory)
        output, after = self._answer
        # whoever gets it may write to it
        return output.clone(), after

    def _again(self, x: Tensor, memory: Memory | None) -> bool:
        assert self._input is not None
        before, remembered = self._input
        if memory is None or remembered is None or not _same(x, before):
            return False
        return all(_same(now, then) for now, then in zip(memory, remembered, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
