"""The tiny autoencoder in as few kernels as pays, with the same weights.

What is linear in a row becomes one convolution: pooling time and halving the picture; growing time,
enlarging the picture and the convolution after it. The products of their weights are rounded once,
where the model itself rounds what lies between. Memory is the model's own, so a stream may go on
either way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.tiny import (
    Memory,
    MemoryBlock,
    TemporalGrow,
    TemporalPool,
    TinyVideoAutoencoder,
)
from stillframe.kernels.convolution import Convolution, available, convolve

__all__ = ["FusedAutoencoder", "fused_autoencoder"]

_CHANNELS = 16  # of a convolution's input, at least, and a multiple of it


class _Residual:
    """A memory block: three convolutions, the first of which sees the frame before."""

    def __init__(self, block: MemoryBlock) -> None:
        first, second, third = (layer for layer in block.conv if isinstance(layer, nn.Conv2d))
        self._first = Convolution(_taps(first), first.bias, 2, past=True, relu=True)
        self._second = Convolution(_taps(second), second.bias, relu=True)
        self._third = Convolution(_taps(third), third.bias, relu=True)

    def __call__(self, x: Tensor, past: Tensor, batch: int) -> Tensor:
        y = convolve(self._first, x, past, batch=batch)
        return convolve(self._third, convolve(self._second, y), added=x)


Step = _Residual | Convolution | nn.Module


class FusedAutoencoder:
    """A tiny autoencoder in fused kernels.

    Args:
        vae: `supports` says yes to it.
    """

    def __init__(self, vae: TinyVideoAutoencoder) -> None:
        self.vae = vae
        self._made_of = _identity(vae)
        self._encoder, self._decoder = _steps(list(vae.encoder)), _steps(list(vae.decoder))

    @staticmethod
    def supports(vae: TinyVideoAutoencoder) -> bool:
        """Whether there is something to gain, and its widths are what the kernels take."""
        config = vae.config
        widths = (config["encoder_channels"], *config["decoder_channels"])
        half = vae.dtype in (torch.float16, torch.bfloat16)
        return half and available() and all(width % _CHANNELS == 0 for width in widths)

    @property
    def stale(self) -> bool:
        """Whether the model's weights have moved since."""
        return self._made_of != _identity(self.vae)

    def encode_chunk(self, frames: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """As `TinyVideoAutoencoder.encode_chunk`."""
        return self.vae.encode_chunk(frames, memory, self._run)

    def decode_chunk(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """As `TinyVideoAutoencoder.decode_chunk`."""
        return self.vae.decode_chunk(latents, memory, self._run)

    def _run(
        self, layers: nn.Sequential, x: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Apply layers to (B, T, C, H, W), as ``autoencoder._run`` does."""
        batch = x.shape[0]
        frames = x.transpose(0, 1).flatten(0, 1).permute(0, 2, 3, 1)
        missing = -frames.shape[3] % _CHANNELS
        frames = F.pad(frames, (0, missing)) if missing else frames.contiguous()
        remembered: Memory = []
        for step in self._encoder if layers is self.vae.encoder else self._decoder:
            if isinstance(step, Convolution):
                frames = convolve(step, frames, batch=batch)
            elif isinstance(step, _Residual):
                past = torch.zeros_like(frames[:batch])
                if memory is not None:
                    past = memory[len(remembered)].permute(0, 2, 3, 1).contiguous()
                remembered.append(frames[-batch:].clone().permute(0, 3, 1, 2))
                frames = step(frames, past, batch)
            else:
                frames = step(frames)
        frames = frames.permute(0, 3, 1, 2)
        return frames.unflatten(0, (-1, batch)).transpose(0, 1), remembered


def fused_autoencoder(vae: TinyVideoAutoencoder) -> FusedAutoencoder:
    """An autoencoder in fused kernels: one for all its streams."""
    fused = vae.__dict__.get("fused")
    if not isinstance(fused, FusedAutoencoder) or fused.stale:
        with torch.inference_mode(False), torch.no_grad():
            fused = FusedAutoencoder(vae)
        vae.__dict__["fused"] = fused  # no module, so not among the model's parts
    return fused


def _identity(vae: TinyVideoAutoencoder) -> tuple[object, ...]:
    weight = next(vae.parameters())
    return weight.data_ptr(), weight.dtype, weight.device


def _taps(layer: nn.Conv2d) -> Tensor:
    """Weights of a convolution as `Convolution` has them, channels padded."""
    weight = layer.weight.data.permute(2, 3, 0, 1)
    return F.pad(weight, (0, -weight.shape[3] % _CHANNELS)).unsqueeze(0)


def _steps(layers: list[nn.Module]) -> list[Step]:
    """Layers as steps."""
    steps: list[Step] = []
    ahead = iter(range(len(layers)))
    for i in ahead:
        layer = layers[i]
        if isinstance(layer, MemoryBlock):
            steps.append(_Residual(layer))
        elif isinstance(layer, TemporalPool):
            steps.append(_pooled(layer, layers[next(ahead)]))
        elif isinstance(layer, nn.Upsample | nn.Identity):
            grow, conv = layers[next(ahead)], layers[next(ahead)]
            relu = isinstance(layers[i + 3], nn.ReLU)
            steps.append(_grown(grow, conv, isinstance(layer, nn.Upsample), relu))
        elif isinstance(layer, nn.Conv2d):
            relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            steps.append(Convolution(_taps(layer), layer.bias, relu=relu))
        elif not isinstance(layer, nn.ReLU):  # those are part of convolutions
            steps.append(layer)
    return steps


def _pooled(pool: TemporalPool, conv: nn.Module) -> Convolution:
    """Pooling of time and the convolution after it, neither of which has a bias."""
    assert isinstance(conv, nn.Conv2d)
    mixed = pool.conv.weight.data.flatten(1).double()
    weight = torch.einsum("nmkl,mc->klnc", conv.weight.data.double(), mixed)
    weight = weight.to(conv.weight.dtype).unsqueeze(0)
    return Convolution(weight, None, pool.stride, stride=conv.stride[0])


def _grown(grow: nn.Module, conv: nn.Module, enlarge: bool, relu: bool) -> Convolution:
    """Growth of time and the convolution after it; enlarging between them changes nothing."""
    assert isinstance(grow, TemporalGrow)
    assert isinstance(conv, nn.Conv2d)
    mixed = grow.conv.weight.data.flatten(1).unflatten(0, (grow.stride, -1)).double()
    weight = torch.einsum("nmkl,gmc->gklnc", conv.weight.data.double(), mixed)
    return Convolution(weight.to(conv.weight.dtype), None, enlarge=enlarge, relu=relu)
