"""The layers of the tiny autoencoder as products of matrices over lists of pixels.

A *map* is the activation of a whole latent frame, channels last, its frames one after the other (a
latent frame has 1, 2 or 4 of them, its *phases*) and a border of zeros around each. Pixels of a map
that lie side by side are one run of memory, so what a 3x3 convolution sees of a map is three runs a
pixel: a `Product` gathers them as rows of a matrix, multiplies that, and writes the rows back.

Wide convolutions go by tiles instead (F(2x2, 3x3) of Lavin and Gray, arXiv:1509.09308): what 2x2
pixels see are 4x4, and sums of those need 16 products for 36. It is less to gather, too.

What is linear in a row is one product: growing time, enlarging the picture and the convolution
after it; and mixing channels and the convolution after it. Weights are multiplied in double.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stillframe.autoencoders.derived import derived
from stillframe.autoencoders.tiny import (
    TEMPORAL_FACTOR,
    Memory,
    MemoryBlock,
    TemporalGrow,
    TemporalPool,
    TinyVideoAutoencoder,
    cheapest_order,
)

__all__ = ["BORDER", "MapShape", "Product", "Program", "Programs", "Run", "programs", "record"]

#: Pixels of zeros around maps: so far do tiles see that begin one before the picture.
BORDER = 2
#: Channels, in and out, from which on tiles pay. Sums of narrower ones cost more than they save.
WIDE = 48

_INWARDS = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_OUTWARDS = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]])
_TAPS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
#: What the 16 pixels that a tile sees become, before its products; and its 4 after them.
TILE_IN, TILE_OUT = torch.kron(_INWARDS, _INWARDS), torch.kron(_OUTWARDS, _OUTWARDS)
#: The one of the 16 to which a bias is added: all four pixels have it once.
TILE_BIAS = 5


@dataclass
class MapShape:
    """A map but for the size of the picture.

    Attributes:
        scale: pixels along the side of a cell.
        phases: frames of a latent frame.
        width: channels.
        past: whether the last frame of the latent frame before is kept too, ahead of the others.
    """

    scale: int
    phases: int
    width: int
    past: bool = False

    def of(self, frames: Tensor, batch: int) -> Tensor:
        """A map (frames, B, H + 2 BORDER, W + 2 BORDER, C) of frames (phases * B, C, H, W)."""
        inner = frames.unflatten(0, (-1, batch)).permute(0, 1, 3, 4, 2)
        phases, _, height, width, channels = inner.shape
        sides = height + 2 * BORDER, width + 2 * BORDER
        data = inner.new_zeros(phases + self.past, batch, *sides, channels)
        within(data)[self.past :] = inner
        return data


def within(data: Tensor) -> Tensor:
    """A map (..., H + 2 BORDER, W + 2 BORDER, C) without its border."""
    return data[..., BORDER:-BORDER, BORDER:-BORDER, :]


@dataclass(frozen=True)
class Run:
    """Where pixels that a product sees begin, from the pixel that it is computed for.

    Attributes:
        phase: frames later; negative: before.
        down, right: pixels.
    """

    phase: int
    down: int
    right: int


@dataclass(frozen=True)
class Product:
    """A layer.

    Attributes:
        source, target: numbers of maps; the target is None where rows go out of the program.
        weight: (runs * length * channels in, grow * channels out); of tiles: (16, channels of all
            frames seen, grow * channels out).
        bias: (grow * channels out) or None.
        runs: what is seen, ``length`` pixels each.
        stride: pixels of the source for each of the target, along a side.
        corner: which of the 2x2 pixels that one of the source becomes, (down, right); None where
            sides stay.
        pool: frames of the source for each row.
        grow: frames of the target from each row.
        relu: whether negative results become 0.
        added: the map that is added before that, None for none.
        tiled: whether it is computed by tiles.
    """

    source: int
    target: int | None
    weight: Tensor
    bias: Tensor | None
    runs: tuple[Run, ...]
    length: int
    stride: int = 1
    corner: tuple[int, int] | None = None
    pool: int = 1
    grow: int = 1
    relu: bool = False
    added: int | None = None
    tiled: bool = False

    @property
    def seen_phases(self) -> list[int]:
        """Frames that are seen, from the one that a row is computed for."""
        return list(dict.fromkeys(run.phase for run in self.runs))


_AROUND = tuple(Run(0, down, -1) for down in (-1, 0, 1))


class Program:
    """Layers as products from map to map. The first map is the input; the last rows go out.

    Args:
        layers: an encoder, a decoder or a refinement.
        scale: pixels along the side of a cell, at the input.
        phases: frames of a latent frame, at the input.
        channels: of the input.

    Attributes:
        maps: in the order in which `record` returns them, behind the input.
        products: in order.
    """

    def __init__(self, layers: nn.Sequential, scale: int, phases: int, channels: int) -> None:
        self.maps = [MapShape(scale, phases, channels)]
        self.products: list[Product] = []
        order = [layer for layer in cheapest_order(layers) if not isinstance(layer, nn.Identity)]
        position = 0
        while position < len(order):
            position += self._add(order[position : position + 4])
        self.maps.pop()
        self.products[-1] = replace(self.products[-1], target=None)
        self.products = [self._best(product) for product in self.products]

    def _add(self, ahead: list[nn.Module]) -> int:
        """Add what the next layers do; returns how many of them that is."""
        layer = ahead[0]
        if isinstance(layer, MemoryBlock):
            self._remember(layer)
        elif isinstance(layer, TemporalPool):
            if layer.stride > 1:
                self._pool(layer)
            else:
                return 1 + self._convolve(ahead[1:], layer.conv.weight.detach().flatten(1))
        elif isinstance(layer, TemporalGrow):
            return 1 + self._grow(layer, ahead[1:])
        elif isinstance(layer, nn.Conv2d):
            return self._convolve(ahead, None)
        return 1  # what stands alone is the caller's: the clamp of the input

    def _best(self, product: Product) -> Product:
        """A product by tiles, if that pays."""
        width = self.maps[product.source].width
        plain = product.length == 3 and product.stride == 1 and product.corner is None
        if not plain or min(width, product.weight.shape[1]) < WIDE:
            return product
        if product.weight.dtype.itemsize < 4:
            return product  # sums would be rounded
        taps = product.weight.unflatten(0, (-1, 3, 3, width)).double()
        sums = _TAPS.to(taps)
        tiles = torch.einsum("ia,jb,fabcn->ijfcn", sums, sums, taps)
        tiles = tiles.flatten(2, 3).flatten(0, 1).to(product.weight)
        return replace(product, weight=tiles, tiled=True)

    def _new(self, **changed: int) -> int:
        """A map like the last one but for what changed."""
        self.maps.append(replace(self.maps[-1], past=False, **changed))
        return len(self.maps) - 1

    def _remember(self, block: MemoryBlock) -> None:
        first, second, third = (layer for layer in block.conv if isinstance(layer, nn.Conv2d))
        source = len(self.maps) - 1
        self.maps[source].past = True
        both = (*_AROUND, *(replace(run, phase=-1) for run in _AROUND))
        # channels of the frame, then of the one before: here, pixels of the one, then of the other
        weight = first.weight.detach().unflatten(1, (2, -1)).permute(0, 1, 3, 4, 2)
        now = self._new()
        self.products.append(Product(source, now, _rows(weight), _bias(first), both, 3, relu=True))
        last = self._new()
        self.products.append(self._plain(second, now, last, relu=True))
        out = self._new()
        self.products.append(replace(self._plain(third, last, out, relu=True), added=source))

    @staticmethod
    def _plain(layer: nn.Conv2d, source: int, target: int, relu: bool) -> Product:
        weight = _rows(layer.weight.detach().permute(0, 2, 3, 1))
        return Product(source, target, weight, _bias(layer), _AROUND, 3, relu=relu)

    def _pool(self, layer: TemporalPool) -> None:
        source, stride = len(self.maps) - 1, layer.stride
        target = self._new(phases=self.maps[source].phases // stride)
        weight = _rows(layer.conv.weight.detach().flatten(1))
        runs = tuple(Run(phase, 0, 0) for phase in range(stride))
        self.products.append(Product(source, target, weight, None, runs, 1, pool=stride))

    def _convolve(self, ahead: list[nn.Module], mixed: Tensor | None) -> int:
        layer = ahead[0]
        assert isinstance(layer, nn.Conv2d)
        relu = len(ahead) > 1 and isinstance(ahead[1], nn.ReLU)
        source, stride = len(self.maps) - 1, layer.stride[0]
        weight = layer.weight.detach()
        target = self._new(scale=self.maps[source].scale // stride, width=len(weight))
        product = replace(self._plain(layer, source, target, relu), stride=stride)
        if mixed is not None:
            weight = torch.einsum("nmkl,mc->nklc", weight.double(), mixed.double()).to(weight)
            product = replace(product, weight=_rows(weight))
        self.products.append(product)
        return 2 if relu else 1

    def _grow(self, grow: TemporalGrow, ahead: list[nn.Module]) -> int:
        enlarge = isinstance(ahead[0], nn.Upsample)
        layer, *after = ahead[1:] if enlarge else ahead
        assert isinstance(layer, nn.Conv2d)
        relu = bool(after) and isinstance(after[0], nn.ReLU)
        source, count = len(self.maps) - 1, grow.stride
        shape, weight = self.maps[source], layer.weight.detach()
        scale, phases = shape.scale * (2 if enlarge else 1), shape.phases * count
        target = self._new(scale=scale, phases=phases, width=len(weight))
        mixed = grow.conv.weight.detach().flatten(1).unflatten(0, (count, -1))
        every = torch.einsum("nmkl,gmc->gnklc", weight.double(), mixed.double())

        def add(taps: Tensor, runs: tuple[Run, ...], corner: tuple[int, int] | None) -> None:
            rows = _rows(taps.to(weight).flatten(0, 1))
            length = taps.shape[3]
            made = Product(source, target, rows, None, runs, length, 1, corner, 1, count, relu)
            self.products.append(made)

        if enlarge:
            for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                taps = _halved(_halved(every, 2, down), 3, right)
                runs = tuple(Run(0, down - 1 + row, right - 1) for row in (0, 1))
                add(taps, runs, (down, right))
        else:
            add(every, _AROUND, None)
        return enlarge + 1 + relu


def _rows(weight: Tensor) -> Tensor:
    """Weights (channels out, ...) as a matrix (..., channels out); no copy where none is needed."""
    return weight.flatten(1).t()


def _bias(layer: nn.Conv2d) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def _halved(taps: Tensor, dim: int, place: int) -> Tensor:
    """Three taps over an enlarged picture as two over the picture itself.

    Args:
        place: 0 for the first of the two pixels that one becomes, 1 for the second.
    """
    first, second, third = taps.unbind(dim)
    two = (first, second + third) if place == 0 else (first + second, third)
    return torch.stack(two, dim)


def record(
    layers: nn.Sequential, x: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory, list[Tensor]]:
    """Apply layers to (B, T, C, H, W) of a single latent frame and keep what lies between.

    Returns:
        the output, what memory blocks remember, and the maps of `Program` behind the first, each
        (phases * B, C, H, W).
    """
    batch = x.shape[0]
    x = x.transpose(0, 1).flatten(0, 1)
    remembered: Memory = []
    maps: list[Tensor] = []
    for layer in cheapest_order(layers):
        if isinstance(layer, MemoryBlock):
            past = torch.zeros_like(x[:batch]) if memory is None else memory[len(remembered)]
            remembered.append(x[-batch:].clone())
            y = torch.cat([x, past if len(x) == batch else torch.cat([past, x[:-batch]])], 1)
            for part in layer.conv:
                y = part(y)
                if isinstance(part, nn.Conv2d):
                    maps.append(y)
            x = torch.relu_(maps.pop().add(x))
            maps.append(x)
        elif isinstance(layer, TemporalPool):
            x = layer(x, batch)
            if layer.stride > 1:
                maps.append(x)
        elif isinstance(layer, TemporalGrow):
            x = layer(x, batch)
        else:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                maps.append(x)
    return x.unflatten(0, (-1, batch)).transpose(0, 1), remembered, maps[:-1]


class Programs:
    """The programs of an autoencoder.

    Attributes:
        encoder, decoder, refine: of its parts; None where there is no refinement.
    """

    def __init__(self, vae: TinyVideoAutoencoder) -> None:
        scale = vae.spatial_factor // vae.patch_size
        widths = 3 * vae.patch_size**2, vae.config["latent_channels"]
        self.encoder = Program(vae.encoder, scale, TEMPORAL_FACTOR, widths[0])
        self.decoder = Program(vae.decoder, 1, 1, widths[1])
        self.refine: Program | None = None
        if vae.refine is not None:
            halves = vae.spatial_factor // 2, TEMPORAL_FACTOR, 12
            self.refine = Program(vae.refine, *halves)


def programs(vae: TinyVideoAutoencoder) -> Programs:
    """The programs of an autoencoder: one set for all its streams."""
    return derived(vae, "programs", lambda: Programs(vae))
