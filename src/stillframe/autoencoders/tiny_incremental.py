"""Encoding and decoding with the tiny autoencoder at a price of what changed, on a CPU.

A latent frame is computed whole, by the model's own layers, or at active cells alone, by products
of matrices that read and write the maps of `Maps` in place. The two take turns in any order: what
is computed whole is kept as it lies, and becomes maps when cells are first asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.activity import Cells, active
from stillframe.autoencoders.tiny import Memory, TinyVideoAutoencoder
from stillframe.autoencoders.tiny_blocks import DECODING, ENCODING, Direction, in_pieces
from stillframe.autoencoders.tiny_maps import Maps
from stillframe.autoencoders.tiny_program import programs, record

__all__ = ["IncrementalDecoder", "IncrementalEncoder"]


class _Layers(NamedTuple):
    """Layers that ran over a whole latent frame: which of `Programs`, and see `Maps`."""

    part: str
    recorded: list[Tensor]
    entering: Tensor
    batch: int


class _Known(NamedTuple):
    """A block computed whole: what from, and the parts of what came out."""

    block: Tensor
    memory: Memory | None
    parts: list[Tensor]


class _Incremental(ABC):
    """One direction of one stream.

    Args:
        vae: the autoencoder.
        most: pixels of frames to compute at once, where everything is computed.
    """

    direction: Direction
    #: From this share of active cells on, computing everything is faster: with one thread, and with
    #: more, which lists of pixels have less of. Of the bundled model; wider ones could have more.
    dense_from: tuple[float, float]

    def __init__(self, vae: TinyVideoAutoencoder, most: int) -> None:
        self.vae = vae
        self._most = most
        self._memory: Memory | None = None  # None also where `_maps` have it
        self._layers: list[_Layers] = []  # of the latest latent frame, if computed whole
        self._maps: list[Maps] = []  # made of those when cells are asked for
        self._output: Tensor | None = None  # of the latest latent frame, if either is there
        self._known: _Known | None = None
        self._begun = self._asked = False  # to compute; to compute less than everything

    def __call__(self, block: Tensor, changed: Tensor | None) -> Tensor:
        """Compute the next block.

        Args:
            block: frames (B, T, 3, H, W) or latents (B, C, S, h, w).
            changed: (B, S, h, w) bool, what is needed anew; None: everything.
        """
        self._asked = self._asked or changed is not None
        if changed is not None and self._output is not None and not block.is_meta:
            cells = active(changed.to(block.device))
            most = self.dense_from[torch.get_num_threads() > 1]
            if cells.float().mean().item() < most:
                return self._partial(block, self._output, cells)
        return self._whole(block, changed is not None)

    def _whole(self, block: Tensor, asked: bool) -> Tensor:
        memory = self._maps[0].memory() if self._maps else self._memory
        if self._known is not None and _again(self._known, block, memory):
            return torch.cat(self._known.parts, self.direction.time_out)
        # a first block cannot know whether less will ever be asked for
        keep = self._asked or not self._begun
        self._known, self._output = None, None
        self._layers, self._maps = [], []
        parts = self._computed(block, memory, keep)
        # who says what changed needs no comparing
        if not asked and not block.is_meta:
            self._known = _Known(block, memory, parts)
        self._begun = True
        return torch.cat(parts, self.direction.time_out)

    def _computed(self, block: Tensor, memory: Memory | None, keep: bool) -> list[Tensor]:
        """What comes out, in parts; the last latent frame by itself where its layers are kept."""
        time, length = self.direction.time_in, self.direction.length
        cut = block.shape[time] - (length if keep else 0)
        before, last = block.tensor_split((cut,), time)
        parts, memory = in_pieces(self._chunk, self.direction, before, memory, self._most)
        if keep:
            self._output, memory, self._layers = self._recorded(last, memory)
            parts.append(self._output)
        self._memory = memory
        if block.is_meta:  # where no cells can be listed, but maps are to be counted
            self._open()
        return parts

    def _partial(self, block: Tensor, output: Tensor, chosen: Tensor) -> Tensor:
        time, count = self.direction.time_out, output.shape[self.direction.time_out]
        sizes = list(output.shape)
        sizes[time] *= chosen.shape[1]
        out = output.new_empty(sizes)
        self._known = None
        for k, frames in enumerate(block.split(self.direction.length, self.direction.time_in)):
            cells = Cells(chosen[:, k])
            if len(cells):
                self._open()
                self._advance(frames, output, cells, Cells(active(chosen[:, k])))
            out.narrow(time, k * count, count).copy_(output)
        return out

    def _open(self) -> None:
        """Make maps of layers, if that is not done."""
        for part, recorded, entering, batch in self._layers:
            program = getattr(programs(self.vae), part)
            self._maps.append(Maps(program, recorded, entering, batch))
        if self._layers:
            self._memory, self._layers = None, []

    @abstractmethod
    def _chunk(self, part: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Compute some latent frames whole."""

    @abstractmethod
    def _recorded(
        self, frame: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Memory, list[_Layers]]:
        """Compute one latent frame whole; what lies between as well."""

    @abstractmethod
    def _advance(self, frame: Tensor, output: Tensor, cells: Cells, ring: Cells) -> None:
        """Compute cells of the next latent frame, into the output.

        Args:
            ring: the cells with one more around them, which is what is seen of the input.
        """


class IncrementalEncoder(_Incremental):
    """Frames (B, T, 3, H, W) to normalised latents (B, C, S, h, w)."""

    direction = ENCODING
    dense_from = 0.62, 0.54

    def _chunk(self, part: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        return self.vae.encode_chunk(part, memory)

    def _recorded(
        self, frame: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Memory, list[_Layers]]:
        kept: list[_Layers] = []

        def run(layers: nn.Sequential, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
            out, memory, recorded = record(layers, x, memory)
            entering = x.transpose(0, 1).flatten(0, 1)
            kept.append(_Layers("encoder", recorded, entering, len(x)))
            return out, memory

        latents, memory = self.vae.encode_chunk(frame, memory, run)
        return latents, memory, kept

    def _advance(self, frame: Tensor, output: Tensor, cells: Cells, ring: Cells) -> None:
        patch, factor = self.vae.patch_size, self.vae.spatial_factor
        video, line, column = ring.places
        squares = _squares(frame, factor)[video, :, :, line, :, column]  # (N, T, 3, F, F)
        squares = squares.to(self.vae.dtype).unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        rows = squares.permute(1, 0, 3, 5, 2, 4, 6)  # (T, N, s, s, 3, p, p)
        (maps,) = self._maps
        maps.write(rows.reshape(-1, 3 * patch**2), ring)
        mean, std = self.vae.statistics(output)
        found = (maps.compute(cells).flatten(0, 3) - mean.flatten()) / std.flatten()
        video, line, column = cells.places
        output[video, :, 0, line, column] = found


class IncrementalDecoder(_Incremental):
    """Normalised latents (B, C, S, h, w) to frames (B, T, 3, H, W) in [0, 1]."""

    direction = DECODING
    dense_from = 0.85, 0.8

    def __init__(self, vae: TinyVideoAutoencoder, most: int) -> None:
        super().__init__(vae, most // (vae.temporal_factor * vae.spatial_factor**2))

    def _chunk(self, part: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        return self.vae.decode_chunk(part, memory)

    def _recorded(
        self, frame: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Memory, list[_Layers]]:
        vae, batch = self.vae, len(frame)
        mean, std = vae.statistics(frame)
        x = frame.transpose(1, 2) * std + mean
        out, memory, recorded = record(vae.decoder, x, memory)
        kept = [_Layers("decoder", recorded, x.flatten(0, 1), batch)]
        pictures = F.pixel_shuffle(out, vae.patch_size)
        if vae.refine is not None:
            halves = F.pixel_unshuffle(pictures, 2)
            added, _, recorded = record(vae.refine, halves, None)
            entering = halves.transpose(0, 1).flatten(0, 1)
            kept.append(_Layers("refine", recorded, entering, batch))
            pictures = pictures + F.pixel_shuffle(added, 2)
        return pictures.clamp(0, 1), memory, kept

    def _advance(self, frame: Tensor, output: Tensor, cells: Cells, ring: Cells) -> None:
        vae, patch = self.vae, self.vae.patch_size
        mean, std = vae.statistics(output)
        video, line, column = ring.places
        latents = frame[video, :, 0, line, column].to(vae.dtype) * std.flatten() + mean.flatten()
        decoder, *refinement = self._maps
        decoder.write(vae.decoder[0](latents), ring)
        rows = decoder.compute(cells).unflatten(4, (3, patch, patch))
        squares = rows.permute(1, 0, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)  # (N, T, 3, F, F)
        for refine in refinement:
            halves = F.pixel_unshuffle(squares, 2).permute(1, 0, 3, 4, 2)
            refine.write(halves.reshape(-1, halves.shape[-1]), cells)
            added = refine.compute(cells).permute(1, 0, 4, 2, 3)
            squares = squares + F.pixel_shuffle(added, 2)
        video, line, column = cells.places
        _squares(output, vae.spatial_factor)[video, :, :, line, :, column] = squares.clamp(0, 1)


def _squares(frames: Tensor, side: int) -> Tensor:
    """Frames (B, T, 3, H, W) as (B, T, 3, h, side, w, side), the same memory."""
    return frames.unflatten(4, (-1, side)).unflatten(3, (-1, side))


def _again(known: _Known, block: Tensor, memory: Memory | None) -> bool:
    """Whether what goes into a block, and what is remembered, is the same again."""
    if memory is None or known.memory is None or not _same(block, known.block):
        return False
    return all(_same(now, then) for now, then in zip(memory, known.memory, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
