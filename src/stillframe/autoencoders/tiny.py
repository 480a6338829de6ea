"""The tiny video autoencoder: pixels to latents and back, causal in time.

The architecture is that of TAEHV (Tiny AutoEncoder for Hunyuan Video,
github.com/madebyollin/taehv): convolutions over space only, *memory blocks* that also see the frame
before, temporal pooling by 4 and spatial pooling by 8. Layer order and parameter names match it, so
the published ``taew2_1`` weights load with ``load_state_dict``; the widths are free, so that the
bundled model can be slimmer.

The module is stateless: what a memory block remembers is handed in and out by the caller
(`streaming` keeps it for a stream). It does not know about files, blocks or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = [
    "TEMPORAL_FACTOR",
    "Memory",
    "MemoryBlock",
    "RunLayers",
    "TemporalGrow",
    "TemporalPool",
    "TinyVideoAutoencoder",
    "cheapest_order",
]

#: One tensor a memory block: the last frame it saw, ``(B, C, H, W)``.
Memory = list[Tensor]
#: Applies layers to (B, T, C, H, W) and a memory, see `_run`.
RunLayers = Callable[[nn.Sequential, Tensor, "Memory | None"], tuple[Tensor, Memory]]

TEMPORAL_FACTOR = 4


def _conv(n_in: int, n_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class _Clamp(nn.Module):
    """Soft limit of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Residual convolutions over a frame and its predecessor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, past], 1)).add(x), inplace=True)


class TemporalPool(nn.Module):
    """``stride`` frames become one: channels are stacked, then mixed by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.stride > 1:
            steps = x.unflatten(0, (-1, self.stride, batch)).unbind(1)
            x = torch.cat([step.flatten(0, 1) for step in steps], 1)
        return self.conv(x)


class TemporalGrow(nn.Module):
    """One frame becomes ``stride``."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.conv(x)
        if self.stride > 1:
            # with channels last, so that the one copy which this takes is also the only one
            x = x.permute(0, 2, 3, 1).unflatten(3, (self.stride, -1)).unflatten(0, (-1, batch))
            x = x.permute(0, 4, 1, 2, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
        return x


def _build_encoder(width: int, latent_channels: int, patch: int, stages: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3 * patch**2, width), nn.ReLU(inplace=True)]
    for stage, stride in enumerate((2, 2, 1)):
        halve = _conv(width, width, stride=2 if stage < stages else 1, bias=False)
        layers += [TemporalPool(width, stride), halve]
        layers += [MemoryBlock(width) for _ in range(3)]
    return nn.Sequential(*layers, _conv(width, latent_channels))


def _build_decoder(
    widths: Sequence[int], latent_channels: int, patch: int, stages: int
) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(latent_channels, widths[0]), nn.ReLU(inplace=True)]
    for stage, stride in enumerate((1, 2, 2)):
        width = widths[stage]
        layers += [MemoryBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2) if stage < stages else nn.Identity()]
        layers += [TemporalGrow(width, stride), _conv(width, widths[stage + 1], bias=False)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), _conv(widths[-1], 3 * patch**2))


def _build_refinement(width: int) -> nn.Sequential:
    """What is added to decoded frames, at half their resolution, to hide the seams of patches."""
    last = _conv(width, 12)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(
        _conv(12, width),
        nn.ReLU(inplace=True),
        _conv(width, width),
        nn.ReLU(inplace=True),
        last,
    )


def cheapest_order(layers: nn.Sequential) -> list[nn.Module]:
    """Swap every (upsample, 1x1 temporal grow): equal results at a quarter of the pixels."""
    order = list(layers)
    for i, layer in enumerate(order[:-1]):
        if isinstance(layer, nn.Upsample):
            order[i], order[i + 1] = order[i + 1], order[i]
    return order


def _run(layers: nn.Sequential, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
    """Apply ``layers`` to ``x`` (B, T, C, H, W); returns the output and what to remember.

    Time is folded into the batch (time first, so that a shift by one frame is a slice), and all
    frames of a chunk run at once. A memory block's *past* is its own input one frame earlier, the
    first one coming from ``memory`` (zeros at a stream's start).
    """
    batch = x.shape[0]
    x = x.transpose(0, 1).flatten(0, 1)
    remembered: Memory = []
    for layer in cheapest_order(layers):
        if isinstance(layer, MemoryBlock):
            first = torch.zeros_like(x[:batch]) if memory is None else memory[len(remembered)]
            remembered.append(x[-batch:].clone())
            # nothing to join where one frame runs alone: an empty part would cost channels last
            x = layer(x, first if len(x) == batch else torch.cat([first, x[:-batch]]))
        elif isinstance(layer, TemporalPool | TemporalGrow):
            x = layer(x, batch)
        else:
            x = layer(x)
    return x.unflatten(0, (-1, batch)).transpose(0, 1), remembered


class TinyVideoAutoencoder(ModelMixin, ConfigMixin):
    """Tiny causal video autoencoder (TAEHV architecture): 4x in time, 8x in space.

    Args:
        latent_channels: C of the latents.
        encoder_channels: width of the encoder; 64 in the published weights.
        decoder_channels: four widths of the decoder, coarse to fine; (256, 128, 64, 64) published.
        patch_size: pixels are folded into channels by so much before the encoder and unfolded
            after the decoder; 1 in the weights for Wan 2.1, more in later members of the family.
        spatial_stages: how many of the three stages halve the picture; 3 in the published weights.
            The picture shrinks by ``patch_size * 2**spatial_stages``.
        refine_channels: width of three convolutions at half resolution whose output is added to
            decoded frames, 0 for none, as published. They hide the seams of a large ``patch_size``.
        frames_to_trim: frames to drop at the start of a decoded video. 3 for weights that imitate
            Wan's own autoencoder, whose first latent stands for one frame; 0 if every latent frame
            stands for four.
        latents_mean, latents_std: C numbers each; latents handed out are ``(z - mean) / std``. None
            where the weights already produce normalised latents, as the published ones do.

    Source: TAEHV, Ollin Boer Bohan, github.com/madebyollin/taehv (architecture only).
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        encoder_channels: int = 64,
        decoder_channels: Sequence[int] = (256, 128, 64, 64),
        frames_to_trim: int = 3,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        patch_size: int = 1,
        spatial_stages: int = 3,
        refine_channels: int = 0,
    ) -> None:
        super().__init__()
        if len(decoder_channels) != 4:
            raise ValueError(f"decoder_channels needs 4 widths, got {len(decoder_channels)}")
        if not 0 <= spatial_stages <= 3 or patch_size < 1:
            raise ValueError(
                f"spatial_stages must be 0 to 3 and patch_size at least 1, "
                f"got {spatial_stages} and {patch_size}"
            )
        for name, numbers in (("latents_mean", latents_mean), ("latents_std", latents_std)):
            if numbers and len(numbers) != latent_channels:
                raise ValueError(
                    f"{name} needs a number for each of {latent_channels} latent channels, "
                    f"got {len(numbers)}"
                )
        shape = (latent_channels, patch_size, spatial_stages)
        self.encoder = _build_encoder(encoder_channels, *shape)
        self.decoder = _build_decoder(decoder_channels, *shape)
        self.refine = _build_refinement(refine_channels) if refine_channels else None
        self.patch_size = patch_size
        self.temporal_factor = TEMPORAL_FACTOR
        self.spatial_factor = patch_size * 2**spatial_stages
        self.frames_to_trim = frames_to_trim
        self._known: tuple[Any, Tensor, Tensor] | None = None

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, (1, 1, C, 1, 1) each, of the tensor's kind."""
        channels = self.config["latent_channels"]
        mean = self.config["latents_mean"] or [0.0] * channels
        std = self.config["latents_std"] or [1.0] * channels
        shape = (1, 1, channels, 1, 1)
        key = (like.device, like.dtype)
        if self._known is None or self._known[0] != key:
            # kept: a copy to the device cannot be part of a graph
            self._known = key, like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)
        return self._known[1:]

    def _encode(
        self, frames: Tensor, memory: Memory | None, run: RunLayers = _run
    ) -> tuple[Tensor, Memory]:
        return run(self.encoder, F.pixel_unshuffle(frames, self.patch_size), memory)

    def _decode(
        self, latents: Tensor, memory: Memory | None, run: RunLayers = _run
    ) -> tuple[Tensor, Memory]:
        frames, memory = run(self.decoder, latents, memory)
        frames = F.pixel_shuffle(frames, self.patch_size)
        if self.refine is not None:
            halves = F.pixel_unshuffle(frames.flatten(0, 1), 2)
            frames = frames + F.pixel_shuffle(self.refine(halves), 2).unflatten(0, frames.shape[:2])
        return frames, memory

    def encode_chunk(
        self, frames: Tensor, memory: Memory | None, run: RunLayers = _run
    ) -> tuple[Tensor, Memory]:
        """Encode a chunk of a stream.

        Args:
            frames: (B, T, 3, H, W) in [0, 1]; T a multiple of 4, H and W multiples of 8.
            memory: what the previous chunk returned; None at the start.
            run: applies the layers.

        Returns:
            normalised latents (B, C, T/4, H/8, W/8), and the memory for the next chunk.

        Raises:
            ValueError: if T, H or W is not such a multiple.
        """
        _, count, _, height, width = frames.shape
        if count % TEMPORAL_FACTOR or height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"a chunk needs frames in fours and sides in multiples of {self.spatial_factor}, "
                f"got {count} frames of {width}x{height}"
            )
        latents, memory = self._encode(frames, memory, run)
        mean, std = self.statistics(latents)
        return ((latents - mean) / std).transpose(1, 2), memory

    def decode_chunk(
        self, latents: Tensor, memory: Memory | None, run: RunLayers = _run
    ) -> tuple[Tensor, Memory]:
        """Decode a chunk: normalised latents (B, C, F, h, w) -> frames (B, 4F, 3, 8h, 8w), clamped.

        ``frames_to_trim`` is the caller's to apply, once a stream.
        """
        mean, std = self.statistics(latents)
        frames, memory = self._decode(latents.transpose(1, 2) * std + mean, memory, run)
        return frames.clamp(0, 1), memory

    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip: (B, T, 3, H, W) in [0, 1] -> normalised latents (B, C, T/4, h, w)."""
        return self.encode_chunk(frames, None)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip: (B, C, F, h, w) -> (B, 4F - frames_to_trim, 3, H, W) in [0, 1]."""
        return self.decode_chunk(latents, None)[0][:, self.frames_to_trim :]

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Encode without normalisation, for training: (B, T, 3, H, W) -> (B, T/4, C, h, w)."""
        return self._encode(frames, None)[0]

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Decode unnormalised latents (B, F, C, h, w) without clamp: (B, 4F, 3, 8h, 8w)."""
        return self._decode(latents, None)[0]

    def forward(self, frames: Tensor) -> Tensor:
        """Reconstruct: (B, T, 3, H, W) in [0, 1] -> (B, T - frames_to_trim, 3, H, W)."""
        return self.decode(self.encode(frames))
