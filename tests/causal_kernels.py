"""Kernels of Wan's autoencoder against their references; run by fused_kernels.py."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from stillframe.kernels import causal_convolution
from stillframe.kernels.causal_convolution import Tile, convolve, convolve_reference
from stillframe.kernels.causal_weights import CausalConvolution
from stillframe.kernels.channel_norm import Norm, place, place_reference
from stillframe.kernels.frames import ChosenCells, Frames, padded_channels

PLACES = 2, 3


class _Compare(Protocol):
    device: str
    dtype: torch.dtype

    def random(self, *shape: int) -> Tensor: ...

    def equal(self, mine: Tensor, other: Tensor) -> None: ...


def frames(
    c: _Compare,
    count: int,
    side: int,
    channels: int,
    past: int = 0,
    border: int = 0,
    batch: int = 2,
) -> Frames:
    """Random ones in a buffer whose borders are zero, and so are the channels beyond."""
    height, width = (places * side for places in PLACES)
    shape = batch, past + count, height + 2 * border, width + 2 * border
    base = torch.zeros(*shape, padded_channels(channels), device=c.device, dtype=c.dtype)
    made = Frames(base, past, border)
    made.everything[..., :channels] = c.random(*made.everything.shape[:4], channels)
    return made


def lists(c: _Compare, batch: int = 2) -> list[Any]:
    """Cells that are active and those that were lately: everything, some, none."""
    some = torch.rand(batch, *PLACES, device=c.device) < 0.4
    more = some | (torch.rand(batch, *PLACES, device=c.device) < 0.4)
    none = torch.zeros_like(some)
    pairs = [(some, more), (none, some)]
    return [(None, None), *((ChosenCells.of(a), ChosenCells.of(b)) for a, b in pairs)]


def compare_places(c: _Compare) -> None:
    gamma = c.random(5) + 2
    for norm, past, count, channels in (
        (Norm(gamma, True), 2, 1, 5),
        (Norm(gamma), 2, 2, 5),
        (Norm(), 1, 2, 3),
        (Norm(), 0, 1, 16),
    ):
        x = c.random(2, channels, count, PLACES[0] * 2, PLACES[1] * 2).permute(0, 2, 3, 4, 1)
        for cells, recent in lists(c):
            for given in (x, None) if past else (x,):
                out = frames(c, count, 2, channels, past, 1)
                other = Frames(out.base.clone(), past, 1)
                place(norm, given, out, cells, recent, 2)
                place_reference(norm, given, other, cells, recent, 2)
                c.equal(out.base, other.base)


def compare_causal_convolutions(c: _Compare) -> None:
    """All kinds there are, of two videos, with what is added and without."""

    def layer(n: int, channels: int, times: int, side: int, **how: Any) -> CausalConvolution:
        weight = c.random(n, channels, times, side, side) / (channels * times * side**2) ** 0.5
        return CausalConvolution(weight, c.random(n), **how)

    for convolution, count, side in (
        (layer(16, 16, 3, 3), 2, 2),
        (layer(5, 3, 3, 3), 1, 2),
        (layer(20, 16, 1, 3, enlarge=True), 1, 1),
        (layer(16, 16, 1, 3, stride=2), 1, 2),
        (layer(32, 16, 3, 1, grow=2), 2, 1),
        (layer(16, 16, 3, 1, pool=2), 4, 1),
        (layer(16, 20, 1, 1), 1, 2),
    ):
        x = frames(c, count, side, convolution.channels, convolution.past, convolution.border)
        shape = convolution.shape(x)
        for cells, _ in lists(c):
            for add in (True, False):
                out = Frames(c.random(*shape))
                added = Frames(c.random(*shape)) if add else None
                other = Frames(out.base.clone())
                given = cells, side // convolution.stride
                convolve(convolution, x, out, added, *given)
                convolve_reference(convolution, x, other, added, *given)
                c.equal(out.base, other.base)


def compare_tiles(c: _Compare) -> None:
    """Tiles of other widths than the chosen one's."""
    # so small that 864 products of float32 come to the same in any order
    weight = c.random(48, 32, 3, 3, 3) / 100
    convolution = CausalConvolution(weight, c.random(48))
    x = frames(c, 2, 2, 32, 2, 1, batch=1)
    expected = convolve_reference(convolution, x)
    for tile in (
        Tile(16, 32, 16, 16, 2),
        Tile(32, 64, 0, 32, 2),
        Tile(32, 128, 0, 16, 2),
    ):
        out = Frames(torch.zeros_like(expected.base))
        causal_convolution._launch(convolution, x, out, None, None, 2, tile)
        c.equal(out.base, expected.base)


def compare_causal(c: _Compare) -> None:
    """All of them."""
    compare_places(c)
    if c.device != "cpu" or c.dtype == torch.float32:  # the interpreter has no bfloat16 products
        compare_causal_convolutions(c)
        compare_tiles(c)
