"""The tiny autoencoder in as few kernels as pays, with the same weights, for one stream.

What is linear in a row becomes one convolution: pooling time and halving the picture; growing time,
enlarging the picture and the convolution after it. The products of their weights are rounded once,
where the model itself rounds what lies between.

Every layer's result is a map of one latent frame, which is kept in place (`kernels.maps`): a latent
frame overwrites it where it is active, and reads around that what earlier ones left there. Nothing
is gathered, scattered or copied, and a block of which everything is active runs the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.activity import active
from stillframe.autoencoders.derived import derived
from stillframe.autoencoders.tiny import (
    MemoryBlock,
    TemporalGrow,
    TemporalPool,
    TinyVideoAutoencoder,
)
from stillframe.kernels.convolution import Convolution, available, convolve
from stillframe.kernels.maps import CellList, Map, list_cells
from stillframe.kernels.redraw import Change, Pictures, redraw
from stillframe.kernels.shared import Memory, captures_on, shared_workplace
from stillframe.kernels.wavefront import Step, run_in_turn

__all__ = ["FusedAutoencoder", "FusedDecoder", "FusedEncoder", "fused_autoencoder"]

_CHANNELS = 16  # those of a map that is convolved are a multiple of it

#: Steps after which no step of a latent frame reads what one wrote: a memory block's input is added
#: three steps later, a picture to what refines it five.
_MEMORY_BLOCK, _REFINEMENT = 3, 5


@dataclass(frozen=True)
class _Layer:
    """A convolution of a map into the next one; ``adds`` the one two before, a memory block's."""

    convolution: Convolution
    adds: bool = False


class FusedAutoencoder:
    """A tiny autoencoder's weights as kernels take them.

    Args:
        vae: `supports` says yes to it.
    """

    def __init__(self, vae: TinyVideoAutoencoder) -> None:
        self.vae = vae
        self.encoder = _layers(list(vae.encoder))
        self.decoder = _layers(list(vae.decoder), squares=vae.spatial_factor > vae.patch_size)
        self.refinement = [] if vae.refine is None else _layers(list(vae.refine))
        config = vae.config
        channels = config["latent_channels"]
        mean = torch.tensor(config["latents_mean"] or [0.0] * channels)
        std = torch.tensor(config["latents_std"] or [1.0] * channels)
        #: of latents, as they go out and come in
        self.normalise = Change((1 / std).to(vae.device), (-mean / std).to(vae.device))
        self.restore = Change(std.to(vae.device), mean.to(vae.device), limit=True)

    @staticmethod
    def supports(vae: TinyVideoAutoencoder) -> bool:
        """Whether there is something to gain."""
        return vae.dtype in (torch.float16, torch.bfloat16) and available()


class _FusedCoder(ABC):
    """One direction of one stream. On a GPU maps and graphs are those of all streams of a size.

    Args:
        vae: `FusedAutoencoder.supports` says yes to it.
        overlap: of latent frames, see `kernels.wavefront`.

    Attributes:
        memory: what the stream leaves where it is coded.
    """

    #: steps after which no step of a latent frame reads what one wrote
    reach = _MEMORY_BLOCK

    def __init__(self, vae: TinyVideoAutoencoder, overlap: bool = True) -> None:
        self._fused, self._overlap = fused_autoencoder(vae), overlap
        self._shape: torch.Size | None = None
        self.memory = Memory()

    def __call__(self, block: Tensor, changed: Tensor | None) -> Tensor:
        """Encode or decode the next block.

        Args:
            block: frames (B, 4*S, 3, H, W) in [0, 1], or normalised latents (B, C, S, h, w).
            changed: (B, S, h, w) bool, latent pixels that are needed; None: all.
        """
        fresh = self._shape != block.shape
        if fresh:
            self._allocate(block)
        self.memory.enter()
        self._given.copy_(block)
        if changed is not None:
            self._changed.copy_(changed)

        def work() -> None:
            self._work(changed is not None)

        with torch.no_grad():
            graphs = self.memory.place.graphs()
            # a stream's first block is often its only one
            if graphs is not None and (not fresh or (changed is None) in graphs):
                graphs.run(changed is None, work)
            else:
                work()
        return self._out.clone()

    def _work(self, partial: bool) -> None:
        batch, frames, height, width = self._changed.shape
        inner = outer = [CellList(batch, height, width)] * frames
        if partial:
            chosen = active(self._changed)
            # what active cells see of the input is a cell more
            lists = list_cells(torch.cat([chosen, active(chosen)], 1))
            inner, outer = lists[:frames], lists[frames:]
        steps = [self._steps(k, inner[k], outer[k]) for k in range(frames)]
        run_in_turn(steps, self.reach, self._overlap and self._given.is_cuda)

    @abstractmethod
    def _allocate(self, x: Tensor) -> None:
        """Everything that a block of the shape of ``x`` needs."""

    @abstractmethod
    def _steps(self, k: int, cells: CellList, around: CellList) -> list[Step]:
        """What latent frame k takes; ``around``: the cells and what they see of the input."""

    def _buffers(self, x: Tensor, out: tuple[int, ...], cells: tuple[int, ...]) -> Tensor:
        """Input, output and what changed; returns a tensor whose kind maps are of."""
        fused, device, dtype = self._fused, self._fused.vae.device, self._fused.vae.dtype
        key = x.shape, device, dtype, self._overlap
        kind, captures = type(self).__name__, captures_on(device)
        self.memory = memory = Memory(shared_workplace(fused, kind, key, captures))
        self._given = memory.zeros("given", x.shape, device, dtype, keep=False)
        self._out = memory.zeros("out", out, device, dtype, keep=False)
        self._changed = memory.zeros("changed", cells, device, torch.bool, keep=False)
        self._shape = x.shape
        return self._given.new_empty(0)

    def _kept(
        self, name: str, shape: tuple[int, int, int, int, int], layers: list[_Layer], like: Tensor
    ) -> list[Map]:
        """Maps of the input of some layers and of what each makes, as the stream leaves them."""
        place = self.memory.place
        maps = place.once(name, lambda: _maps(shape, layers, like))
        for number, known in enumerate(maps):
            place.keep((name, number), known.data)
        return maps


class FusedEncoder(_FusedCoder):
    """Frames to latents."""

    def _allocate(self, x: Tensor) -> None:
        vae = self._fused.vae
        batch, count, _, height, width = x.shape
        times, factor, patch = vae.temporal_factor, vae.spatial_factor, vae.patch_size
        if count % times or height % factor or width % factor:
            raise ValueError(
                f"a block needs frames in multiples of {times} and sides in multiples of {factor}, "
                f"got {count} frames of {width}x{height}"
            )
        h, w = height // factor, width // factor
        channels = vae.config["latent_channels"]
        like = self._buffers(
            x, (batch, channels, count // times, h, w), (batch, count // times, h, w)
        )
        shape = times, batch, height // patch, width // patch, 3 * patch**2
        self._maps = self._kept("maps", shape, self._fused.encoder, like)

    def _steps(self, k: int, cells: CellList, around: CellList) -> list[Step]:
        vae = self._fused.vae
        times = vae.temporal_factor
        given = Pictures(self._given[:, k * times : (k + 1) * times].transpose(0, 1))
        pixels = Pictures.of(self._maps[0], 3 * vae.patch_size**2, vae.patch_size)
        latents = Pictures.of(self._maps[-1], self._out.shape[1], 1)
        out = Pictures(self._out[:, :, k : k + 1].permute(2, 0, 1, 3, 4))
        whole = cells._replace(numbers=None, length=None)
        return [
            lambda: redraw(given, pixels, around),
            *_convolutions(self._fused.encoder, self._maps, cells),
            lambda: redraw(latents, out, whole, self._fused.normalise),
        ]


class FusedDecoder(_FusedCoder):
    """Latents to frames."""

    reach = _REFINEMENT

    def _allocate(self, x: Tensor) -> None:
        vae = self._fused.vae
        batch, channels, frames, h, w = x.shape
        times, factor = vae.temporal_factor, vae.spatial_factor
        height, width = h * factor, w * factor
        like = self._buffers(x, (batch, frames * times, 3, height, width), (batch, frames, h, w))
        self._maps = self._kept("maps", (1, batch, h, w, channels), self._fused.decoder, like)
        shape, layers = (times, batch, height // 2, width // 2, 12), self._fused.refinement
        self._fine = self._kept("fine", shape, layers, like) if layers else []

    def _steps(self, k: int, cells: CellList, around: CellList) -> list[Step]:
        fused, patch, times = (
            self._fused,
            self._fused.vae.patch_size,
            self._fused.vae.temporal_factor,
        )
        latents = Pictures(self._given[:, :, k : k + 1].permute(2, 0, 1, 3, 4))
        first = Pictures.of(self._maps[0], latents.shape[2], 1)
        pixels = Pictures.of(self._maps[-1], 3 * patch**2, patch)
        out = Pictures(self._out[:, k * times : (k + 1) * times].transpose(0, 1))
        whole, added = cells._replace(numbers=None, length=None), None
        steps: list[Step] = [
            lambda: redraw(latents, first, around, fused.restore),
            *_convolutions(fused.decoder, self._maps, cells),
        ]
        if self._fine:
            halves, added = (Pictures.of(self._fine[place], 12, 2) for place in (0, -1))
            steps.append(lambda: redraw(pixels, halves, cells))
            steps += _convolutions(fused.refinement, self._fine, cells)
        return [*steps, lambda: redraw(pixels, out, whole, Change(cut=True), added)]


def fused_autoencoder(vae: TinyVideoAutoencoder) -> FusedAutoencoder:
    """An autoencoder in fused kernels: one for all its streams."""
    return derived(vae, "fused", lambda: FusedAutoencoder(vae))


def _maps(shape: tuple[int, int, int, int, int], layers: list[_Layer], like: Tensor) -> list[Map]:
    """Of the input of some layers, of this shape, and of what each of them makes."""
    maps = []
    for layer in (*layers, None):
        past = layer is not None and layer.convolution.past
        *frames, channels = shape
        maps.append(Map.empty((*frames, _padded(channels)), int(past), like))  # type: ignore[arg-type]
        if layer is not None:
            shape = layer.convolution.shape(maps[-1])
    return maps


def _padded(channels: int) -> int:
    return -(-channels // _CHANNELS) * _CHANNELS


def _convolutions(layers: list[_Layer], maps: list[Map], cells: CellList) -> list[Step]:
    def step(i: int, layer: _Layer) -> Step:
        added = maps[i - 2] if layer.adds else None
        return lambda: convolve(layer.convolution, maps[i], maps[i + 1], added, cells)

    return [step(i, layer) for i, layer in enumerate(layers)]


def _taps(weight: Tensor, sources: int = 1) -> Tensor:
    """Weights (G, 3, 3, N, sources*C) as `Convolution` has them, channels padded."""
    weight = weight.unflatten(4, (sources, -1))
    return F.pad(weight, (0, -weight.shape[5] % _CHANNELS)).flatten(4)


def _plain(layer: nn.Module, sources: int = 1, **how: bool) -> Convolution:
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.data.permute(2, 3, 0, 1).unsqueeze(0)
    bias = None if layer.bias is None else layer.bias.data
    return Convolution(_taps(weight, sources), bias, sources, **how)


def _layers(layers: list[nn.Module], squares: bool = False) -> list[_Layer]:
    """Layers as kernels take them. ``squares``: the last one's sides are even."""
    made: list[_Layer] = []
    ahead = iter(range(len(layers)))
    for i in ahead:
        layer = layers[i]
        relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
        if isinstance(layer, MemoryBlock):
            first, second, third = (part for part in layer.conv if isinstance(part, nn.Conv2d))
            made.append(_Layer(_plain(first, 2, past=True, relu=True)))
            made.append(_Layer(_plain(second, relu=True)))
            made.append(_Layer(_plain(third, relu=True), adds=True))
        elif isinstance(layer, TemporalPool):
            made.append(_Layer(_pooled(layer, layers[next(ahead)])))
        elif isinstance(layer, nn.Upsample | nn.Identity):
            grow, conv = layers[next(ahead)], layers[next(ahead)]
            relu = isinstance(layers[i + 3], nn.ReLU)
            made.append(_Layer(_grown(grow, conv, isinstance(layer, nn.Upsample), relu)))
        elif isinstance(layer, nn.Conv2d):
            few = squares and i == len(layers) - 1 and 4 * layer.out_channels <= _CHANNELS
            made.append(_Layer(_plain(layer, relu=relu, squares=few)))
    return made  # limits of latents are part of how they are read, and cutting off of convolutions


def _pooled(pool: TemporalPool, conv: nn.Module) -> Convolution:
    """Pooling of time and the convolution after it, neither of which has a bias."""
    assert isinstance(conv, nn.Conv2d)
    mixed = pool.conv.weight.data.flatten(1).double()
    weight = torch.einsum("nmkl,mc->klnc", conv.weight.data.double(), mixed)
    weight = _taps(weight.to(conv.weight.dtype).unsqueeze(0), pool.stride)
    return Convolution(weight, None, pool.stride, stride=conv.stride[0])


def _grown(grow: nn.Module, conv: nn.Module, enlarge: bool, relu: bool) -> Convolution:
    """Growth of time and the convolution after it; enlarging between them changes nothing."""
    assert isinstance(grow, TemporalGrow)
    assert isinstance(conv, nn.Conv2d)
    mixed = grow.conv.weight.data.flatten(1).unflatten(0, (grow.stride, -1)).double()
    weight = torch.einsum("nmkl,gmc->gklnc", conv.weight.data.double(), mixed)
    weight = _taps(weight.to(conv.weight.dtype))
    return Convolution(weight, None, enlarge=enlarge, relu=relu)
