"""Autoencoders as streams: pixel frames in whenever they come, blocks of latents out, and back.

The weights stay stateless; a stream object remembers what the causal layers need. Blocks are always
encoded and decoded in the same pieces, however the frames arrive, so chunking never shows in the
result. Latents handed out are normalised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.autoencoders.derived import derived
from stillframe.autoencoders.timeline import Timeline

__all__ = ["StreamingAutoencoder"]


class StreamingAutoencoder(ABC):
    """One stream through an autoencoder.

    Args:
        vae: the autoencoder.
        block_frames: S, latent frames handed out at a time.

    Attributes:
        timeline: how frames, latent frames and blocks go together.

    Class attributes:
        changed_alone: whether edits code only what changed. It takes a measurement: what is shown
            anew has to be what coding everything shows, to two grey levels.
    """

    changed_alone: ClassVar[bool] = True

    def __init__(self, vae: Any, block_frames: int) -> None:
        self.vae = vae
        self.timeline = self.timeline_of(vae, block_frames)
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next frame is a first frame."""
        self._pending: list[Tensor] = []
        self._shape: torch.Size | None = None
        self._received = self._emitted = 0
        self._taken = self._encoded = self._decoded = 0
        self._ended = False

    @property
    def next_frames(self) -> int:
        """Pixel frames that the next block takes."""
        return self.timeline.taken_by(self._taken)

    @property
    def pending_frames(self) -> int:
        """Pixel frames waiting for their block to fill up."""
        return sum(x.shape[1] for x in self._pending)

    def take(self, frames: Tensor) -> list[Tensor]:
        """Take frames (B, T, 3, H, W) in [0, 1]; return the blocks that are now full.

        Returns:
            blocks of frames, each of which `encode_block` is to be called with, in order.

        Raises:
            ValueError: after `finish`, or if the frames differ in shape from those before.
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

    def finish(self) -> list[Tensor]:
        """End the stream: complete the last block by repeating its last frame.

        Returns:
            blocks of frames as `take` does, so many that decoding them all gives every frame taken;
            `decode` drops what the repetition added.
        """
        self._ended = True
        blocks = []
        while self.timeline.decoded_from(self._taken) < self._received:
            last = self._pending[-1] if self._pending else self._last
            missing = self.next_frames - self.pending_frames
            self._pending.append(last[:, -1:].expand(-1, missing, -1, -1, -1))
            blocks.append(self._take_block())
        return blocks

    def encode_block(self, frames: Tensor, changed: Tensor | None = None) -> Tensor:
        """Encode the next block of frames, one that `take` or `finish` returned.

        Args:
            frames: (B, T, 3, H, W) in [0, 1].
            changed: (B, S, h, w) bool, latent pixels that are needed anew; the others may be what
                they were in the latent frame before. None: all are needed.

        Returns:
            (B, C, S, h, w).
        """
        first = self._encoded == 0
        self._encoded += 1
        return self._encode_block(frames, None if first else changed, first)

    def encode(self, frames: Tensor) -> list[Tensor]:
        """`take` frames and encode the blocks that are full; often none."""
        return [self.encode_block(block) for block in self.take(frames)]

    def flush(self) -> list[Tensor]:
        """`finish` and encode what is left."""
        return [self.encode_block(block) for block in self.finish()]

    def decode(self, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        """Decode the next block; over a whole stream as many frames come out as went in.

        Args:
            latents: (B, C, S, h, w).
            changed: (B, S, h, w) bool, latent pixels whose pictures are needed; elsewhere they may
                be what they were in the latent frame before. None: all are needed.

        Returns:
            (B, T, 3, H, W) in [0, 1].
        """
        first = self._decoded == 0
        frames = self._decode_block(latents, None if first else changed, first)
        if first:
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
        self._taken += 1
        return block

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
        return derived(self.vae, "gains", self._found_gains)

    def _found_gains(self) -> Tensor:
        channels, frames = self.latent_channels, min(self.timeline.block_frames, _PROBE_FRAMES)
        steps = torch.cat([torch.zeros(1, channels), torch.eye(channels) * _PROBE])
        latents = steps.view(-1, channels, 1, 1, 1).expand(-1, -1, frames, 6, 6)
        fresh = type(self)(self.vae, frames)
        pictures = fresh.decode(latents.to(self.vae.device).contiguous())
        pictures = pictures[:, -self.timeline.temporal :]
        moved = (pictures[1:] - pictures[:1]).float().flatten(1) * (255 / _PROBE)
        # on the CPU: the first such call on a GPU loads a library of hundreds of MB
        form = (moved @ moved.T / moved.shape[1]).double().cpu()
        values, vectors = torch.linalg.eigh(form)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return (root * channels**0.5).float().to(moved.device)

    @property
    def captured(self) -> bool:
        """Whether its work on a GPU is CUDA graphs."""
        return True

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C."""

    @abstractmethod
    def _encode_block(self, frames: Tensor, changed: Tensor | None, first: bool) -> Tensor: ...

    @abstractmethod
    def _decode_block(self, latents: Tensor, changed: Tensor | None, first: bool) -> Tensor: ...


# standard deviations by which `channel_gains` moves a channel
_PROBE = 0.5
# latent frames of which the last one is looked at
_PROBE_FRAMES = 3
