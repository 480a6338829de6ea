"""Kernels that write maps at listed cells against their references; part of fused_kernels.py."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from tests.partial_autoencoder import PartialReference
from torch import Tensor, nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import FusedDecoder, FusedEncoder
from stillframe.kernels import convolution as kernels
from stillframe.kernels import redraw as redraw_kernels
from stillframe.kernels.convolution import Convolution, Tile, convolve, convolve_reference
from stillframe.kernels.maps import CellList, Map, list_cells
from stillframe.kernels.redraw import Change, Pictures, redraw, redraw_reference

H, W = 3, 5  # cells of a picture


def chosen(c: Any, batch: int, share: float) -> CellList:
    """Cells of a share; beyond the list is nonsense that must not be used."""
    (cells,) = list_cells((torch.rand(batch, 1, H, W) < share).to(c.device))
    assert cells.numbers is not None
    assert cells.length is not None
    cells.numbers[int(cells.length) :] = 2**30
    return cells


def compare_lists(c: Any) -> None:
    """Lists name the active cells of all videos in order."""
    active = torch.rand(2, 3, H, W, device=c.device) < 0.4
    for k, cells in enumerate(list_cells(active)):
        expected = active[:, k].flatten().nonzero()[:, 0]
        assert cells.numbers is not None
        assert cells.length is not None
        assert int(cells.length) == len(expected)
        assert torch.equal(cells.numbers[: len(expected)].long(), expected)
        mask = cells.mask(2)
        assert mask is not None
        assert torch.equal(mask[:, ::2, 1::2], active[:, k])
        c.count += 1


def random_map(c: Any, frames: int, batch: int, side: int, channels: int, past: int) -> Map:
    made = Map.empty((frames, batch, H * side, W * side, channels), past, c.random(0))
    made.data[:, :, 1:-1, 1:-1] = c.random(frames + past, batch, H * side, W * side, channels)
    return made


def compare_convolution(
    c: Any, convolution: Convolution, frames: int, batch: int, side: int, adds: int | None = None,
    tile: Tile | None = None,
) -> None:  # fmt: skip
    """``adds``: the past of what is added, None to add nothing."""
    x = random_map(c, frames, batch, side, convolution.channels, int(convolution.past))
    shape = convolution.shape(x)
    side = shape[2] // H
    channels = -(-convolution.width // 16) * 16
    added = None if adds is None else random_map(c, shape[0], batch, side, channels, adds)
    for share in (None, 0.4, 0.0, 1.0):
        cells = CellList(batch, H, W) if share is None else chosen(c, batch, share)
        results = []
        start = random_map(c, shape[0], batch, side, channels, 1).data
        for run in (convolve, convolve_reference):
            out = Map(start.clone(), 1)
            before = added and Map(added.data.clone(), added.past)
            if run is convolve:
                convolve(convolution, x, out, before, cells, tile)
            else:
                convolve_reference(convolution, x, out, before, cells)
            results.append([out.data, *([] if before is None else [before.data])])
        for mine, other in zip(*results, strict=True):
            c.equal(mine, other)
        # what is not listed, or not of the result, keeps every bit
        mask = cells.mask(side)
        if mask is not None:
            out = Map(results[0][0], 1)
            assert torch.equal(out.data[0], start[0])
            kept = ~mask.expand(shape[:4])
            assert torch.equal(out.pixels[kept], Map(start, 1).pixels[kept])
        edge = out.data.clone()
        edge[:, :, 1:-1, 1:-1] = 0
        assert not edge.any()


def compare_convolutions(c: Any) -> None:
    def weight(grow: int, made: int, channels: int) -> Tensor:
        return c.random(grow, 3, 3, made, channels) / (3 * channels**0.5)

    bias = c.random(16)
    plain = Convolution(weight(1, 16, 16), bias, relu=True)
    compare_convolution(c, plain, 2, 1, 1, adds=0)
    for batch in (1, 2):
        remembering = Convolution(weight(1, 3, 32), bias[:3], 2, past=True)
        compare_convolution(c, remembering, 2, batch, 2)
        compare_convolution(c, plain, 2, batch, 2, adds=1)
    compare_convolution(c, Convolution(weight(1, 16, 64), None, 4, stride=2), 4, 2, 4)
    compare_convolution(c, Convolution(weight(1, 3, 16), bias[:3], squares=True), 2, 2, 4)
    for grow in (1, 2):
        grown = Convolution(weight(grow, 16, 16), None, enlarge=True, relu=True)
        compare_convolution(c, grown, 2, 2, 2)
    # more rows and columns than a program makes, channels in several pieces
    wide = Convolution(weight(1, 192, 160) / 4, None, 2, past=True)
    for tile in (Tile(16, 64, 4, 2), Tile(64, 32, 4, 3)):
        compare_convolution(c, wide, 1, 2, 2, tile=tile)


def compare_redraws(c: Any) -> None:
    """Patches into channels and back, scaled, limited, added, cut off."""
    scale, shift = torch.rand(2, 3, device=c.device) + 0.5
    changes = (Change(), Change(scale, shift, limit=True), Change(scale, shift, cut=True))
    for from_patch, to_patch in ((1, 2), (2, 4), (4, 1), (1, 1)):
        for batch, change in ((1, changes[1]), (2, changes[0]), (2, changes[2])):
            side = 4
            source = Pictures.of(
                random_map(c, 2, batch, side // from_patch, 3 * from_patch**2 + 5, 1),
                3 * from_patch**2,
                from_patch,
            )
            added = None
            if from_patch == 4:
                added = Pictures.of(random_map(c, 2, batch, 2, 16, 0), 12, 2)
            start = random_map(c, 2, batch, side // to_patch, 3 * to_patch**2, 0)
            for share in (None, 0.4, 0.0):
                cells = CellList(batch, H, W) if share is None else chosen(c, batch, share)
                results = []
                for run in (redraw, redraw_reference):
                    out = Map(start.data.clone())
                    to = Pictures.of(out, 3 * to_patch**2, to_patch)
                    if run is redraw:
                        redraw(source, to, cells, change, added)
                    else:
                        redraw_reference(source, to, change, added, cells)
                    results.append(out)
                mask = cells.mask(side // to_patch)
                if mask is not None:
                    kept = ~mask.expand(results[0].pixels.shape[:4])
                    assert torch.equal(results[0].pixels[kept], start.pixels[kept])
                c.equal(results[0].data, results[1].data)


def compare_streams(c: Any) -> None:
    """A stream's blocks, whole and partial, by kernels and by the model's own layers."""
    few: dict[str, Any] = {"encoder_channels": 16, "decoder_channels": (16, 16, 16, 16)}
    patches = {"spatial_stages": 1, "patch_size": 4, "refine_channels": 8}
    for options, batch in ((few, 1), ({**few, **patches}, 2)):
        vae = TinyVideoAutoencoder(**options).eval().requires_grad_(False)
        if vae.refine is not None:
            last = vae.refine[-1]
            assert isinstance(last, nn.Conv2d)
            nn.init.normal_(last.weight, std=0.1)
        vae.to(c.device)
        for kind in (FusedEncoder, FusedDecoder):
            decode = kind is FusedDecoder
            mine, other = kind(vae), PartialReference(vae, decode)
            for share in (None, 0.2, None, 0.4, 0.0) if batch > 1 else (None, 0.2):
                block = torch.rand(batch, 4, 3, 16, 24)
                if decode:
                    block = torch.randn(batch, 16, 1, 2, 3)
                changed = None if share is None else torch.rand(batch, 1, 2, 3) < share
                given = block.to(c.device), None if changed is None else changed.to(c.device)
                c.equal(mine(*given), other(*given))


def compare_maps(c: Any) -> None:
    """All of them; in one dtype, in which the interpreter can multiply."""
    compare_lists(c)
    few: dict[str, Any] = {"_ELEMENTS": 128}
    with patch.multiple(redraw_kernels, **few if c.device == "cpu" else {"_ELEMENTS": 1024}):
        compare_redraws(c)
    compare_convolutions(c)
    if c.dtype == torch.float32:
        compare_streams(c)
    assert kernels.available()
