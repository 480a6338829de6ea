"""Autoencoders as streams: pixel frames in whenever they come, blocks of latents out, and back.

The weights stay stateless; a stream object remembers what the causal layers need. Blocks are always
encoded and decoded in the same pieces, however the frames arrive, so chunking never shows in the
result. Latents handed out are normalised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn

from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import Memory, TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import FusedAutoencoder, fused_autoencoder
from stillframe.errors import ModelError
from stillframe.kernels.graphs import CapturedStep

__all__ = ["StreamingAutoencoder", "TinyStream", "WanStream", "open_autoencoder", "timeline_of"]


class StreamingAutoencoder(ABC):
    """One stream through an autoencoder.

    Args:
        vae: the autoencoder.
        block_frames: S, latent frames handed out at a time.

    Attributes:
        timeline: how frames, latent frames and blocks go together.
    """

    def __init__(self, vae: Any, block_frames: int) -> None:
        self.vae = vae
        self.timeline = self.timeline_of(vae, block_frames)
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next frame is a first frame."""
        self._pending: list[Tensor] = []
        self._shape: torch.Size | None = None
        self._received = self._emitted = self._encoded = self._decoded = 0
        self._ended = False

    @property
    def next_frames(self) -> int:
        """Pixel frames that the next block takes."""
        return self.timeline.taken_by(self._encoded)

    @property
    def pending_frames(self) -> int:
        """Pixel frames waiting for their block to fill up."""
        return sum(x.shape[1] for x in self._pending)

    def encode(self, frames: Tensor) -> list[Tensor]:
        """Take frames (B, T, 3, H, W) in [0, 1]; return the blocks that are now full.

        Returns:
            blocks of latents, each (B, C, S, h, w); often none.

        Raises:
            ValueError: after `flush`, or if the frames differ in shape from those before.
        """
        if self._ended:
            raise ValueError("this stream has been flushed; reset it first")
        shape = frames[:, 0:0].shape
        if self._shape is not None and self._shape != shape:
            (rows, *_, h, w), (now_rows, *_, now_h, now_w) = self._shape, shape
            raise ValueError(
                f"frames changed from {w}x{h} in batches of {rows} "
                f"to {now_w}x{now_h} in batches of {now_rows}"
            )
        self._shape = shape
        if frames.shape[1]:
            self._received += frames.shape[1]
            self._pending.append(frames)
        blocks = []
        while self.pending_frames >= self.next_frames:
            blocks.append(self._take_block())
        return blocks

    def flush(self) -> list[Tensor]:
        """End the stream: complete the last block by repeating its last frame.

        Returns:
            the blocks needed so that decoding them all gives every frame taken; `decode` drops
            what the repetition added.
        """
        self._ended = True
        blocks = []
        while self.timeline.decoded_from(self._encoded) < self._received:
            last = self._pending[-1] if self._pending else self._last
            missing = self.next_frames - self.pending_frames
            self._pending.append(last[:, -1:].expand(-1, missing, -1, -1, -1))
            blocks.append(self._take_block())
        return blocks

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next block (B, C, S, h, w); returns frames (B, T, 3, H, W) in [0, 1].

        Over a whole stream as many frames come out as went in.
        """
        frames = self._decode_block(latents, first=self._decoded == 0)
        if self._decoded == 0:
            frames = frames[:, self.timeline.trim :]
        self._decoded += 1
        if self._ended:
            frames = frames[:, : max(self._received - self._emitted, 0)]
        self._emitted += frames.shape[1]
        return frames

    def _take_block(self) -> Tensor:
        count = self.next_frames
        frames = torch.cat(self._pending, 1)
        block, rest = frames[:, :count], frames[:, count:]
        self._pending = [rest] if rest.shape[1] else []
        self._last = block[:, -1:].clone()
        latents = self._encode_block(block, first=self._encoded == 0)
        self._encoded += 1
        return latents

    @staticmethod
    @abstractmethod
    def timeline_of(vae: Any, block_frames: int) -> Timeline:
        """The geometry of any stream through ``vae``, from its configuration."""

    @torch.inference_mode()
    def channel_gains(self) -> Tensor:
        """What the decoder makes of a change in each latent channel.

        With the gains G, latents x and y of a place look different by about the root mean square of
        (x - y) @ G, in grey levels of 255. Found by decoding mean latents, and the same with one
        channel moved by half a standard deviation: the products of what that changes, averaged over
        pixels and colours, are a quadratic form, and G is a root of it.

        Returns:
            (C, C) float32. Found once for each autoencoder: it takes as long as a small block.
        """
        if self.vae not in _GAINS:
            _GAINS[self.vae] = self._found_gains()
        return _GAINS[self.vae]

    def _found_gains(self) -> Tensor:
        channels = self.latent_channels
        steps = torch.cat([torch.zeros(1, channels), torch.eye(channels) * _PROBE])
        latents = steps.view(-1, channels, 1, 1, 1).expand(-1, -1, self.timeline.block_frames, 8, 8)
        fresh = type(self)(self.vae, self.timeline.block_frames)
        frames = fresh.decode(latents.to(self.vae.device).contiguous())
        frames = frames[:, -self.timeline.temporal :]
        moved = (frames[1:] - frames[:1]).float().flatten(1) * (255 / _PROBE)
        form = (moved @ moved.T / moved.shape[1]).double()
        values, vectors = torch.linalg.eigh(form)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return (root * channels**0.5).float()

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C."""

    @abstractmethod
    def _encode_block(self, frames: Tensor, first: bool) -> Tensor: ...

    @abstractmethod
    def _decode_block(self, latents: Tensor, first: bool) -> Tensor: ...


_GAINS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()

# standard deviations by which `channel_gains` moves a channel
_PROBE = 0.5

# More pixels than this at once make the widest layers the largest thing in memory by far, and are
# no faster; less leaves a GPU idle. A block of 240x416 is below, one latent frame of 480x832 is.
_PIXELS_AT_ONCE = 2**21
# The fused autoencoder keeps less in between.
_PIXELS_AT_ONCE_FUSED = 2**23


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
        fused = self.vae.device.type == "cuda" and FusedAutoencoder.supports(self.vae)
        coder = fused_autoencoder(self.vae) if fused else self.vae
        self._most_pixels = _PIXELS_AT_ONCE_FUSED if fused else _PIXELS_AT_ONCE
        self._encode_chunk = faster(coder.encode_chunk)
        self._decode_chunk = faster(coder.decode_chunk)

    def _encode_block(self, frames: Tensor, first: bool) -> Tensor:
        frames = frames.to(self.vae.device, self.vae.dtype)
        batch, _, _, height, width = frames.shape
        parts = []
        for part in frames.split(self.timeline.temporal * self._at_once(batch * height * width), 1):
            latents, self._encoder_memory = self._encode_chunk(part, self._encoder_memory)
            parts.append(latents)
        return torch.cat(parts, 2)

    def _decode_block(self, latents: Tensor, first: bool) -> Tensor:
        latents = latents.to(self.vae.dtype)
        batch, _, _, h, w = latents.shape
        parts = []
        for part in latents.split(self._at_once(batch * h * w * self.timeline.spatial**2), 2):
            frames, self._decoder_memory = self._decode_chunk(part, self._decoder_memory)
            parts.append(frames)
        return torch.cat(parts, 1)

    def _at_once(self, pixels: int) -> int:
        """Latent frames to code at once, given the pixels of a frame."""
        return max(1, self._most_pixels // (self.timeline.temporal * pixels))


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

    def _encode_block(self, frames: Tensor, first: bool) -> Tensor:
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

    def _decode_block(self, latents: Tensor, first: bool) -> Tensor:
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


def open_autoencoder(vae: nn.Module, block_frames: int) -> StreamingAutoencoder:
    """A stream through ``vae``.

    Raises:
        ModelError: if it is neither a `TinyVideoAutoencoder` nor an ``AutoencoderKLWan``.
    """
    return _stream_class(vae)(vae, block_frames)


def timeline_of(vae: nn.Module, block_frames: int) -> Timeline:
    """How frames go together in any stream through ``vae``, with blocks of so many latent frames.

    Raises:
        ModelError: as `open_autoencoder`.
    """
    return _stream_class(vae).timeline_of(vae, block_frames)


def _stream_class(vae: nn.Module) -> type[StreamingAutoencoder]:
    for kind, stream in ((TinyVideoAutoencoder, TinyStream), (AutoencoderKLWan, WanStream)):
        if isinstance(vae, kind):
            return stream
    raise ModelError(
        f"autoencoders are TinyVideoAutoencoder or AutoencoderKLWan, got {type(vae).__name__}"
    )
