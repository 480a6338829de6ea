"""The maps of one stream through a `Program`, and its products at the pixels of active cells."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.autoencoders.activity import Cells
from stillframe.autoencoders.tiny import Memory
from stillframe.autoencoders.tiny_lists import Lists
from stillframe.autoencoders.tiny_program import (
    BORDER,
    TILE_BIAS,
    TILE_IN,
    TILE_OUT,
    Product,
    Program,
    within,
)

__all__ = ["Maps"]

# Numbers gathered for one product of matrices: so many that caches hold them, and at most so many
# rows, because narrow layers write as much as they read.
_NUMBERS_AT_ONCE = 2**19
_ROWS_AT_ONCE = 2048
# The same for tiles: fewer and longer products pay more than caches that hold them all.
_TILED_AT_ONCE = 2**19


class Maps:
    """Activations of a stream's latest latent frame, computed anew where cells are active.

    Args:
        program: the layers.
        recorded: what `record` kept of a latent frame that was computed whole; taken out of the
            list one by one, so that little is there twice.
        entering: what went in, (phases * B, C, H, W).
        batch: B.
    """

    def __init__(
        self, program: Program, recorded: list[Tensor], entering: Tensor, batch: int
    ) -> None:
        self._program = program
        self._data: list[Tensor] = []
        recorded.insert(0, entering)
        for shape in program.maps:
            self._data.append(shape.of(recorded.pop(0), batch))
        # cells where the frames before are not yet what the last frame is; None: all
        self._recent: Cells | None = None

    def memory(self) -> Memory:
        """What memory blocks remember, as `TinyVideoAutoencoder` has it."""
        return [
            within(data[-1]).permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)
            for data, shape in zip(self._data, self._program.maps, strict=True)
            if shape.past
        ]

    def write(self, rows: Tensor, cells: Cells) -> None:
        """Set the input at cells: rows (phases * N * s * s, C), frame after frame."""
        shape = self._program.maps[0]
        written = Lists(cells).written(shape, shape.phases, 1, None)
        _put(self._data[0], written, rows)

    def compute(self, cells: Cells) -> Tensor:
        """Advance by a latent frame, of which cells are computed.

        Returns:
            (phases, N, s, s, C): what the last product gives.
        """
        self._keep_past()
        self._recent = cells
        lists, out = Lists(cells), torch.empty(0)
        for product in self._program.products:
            run = self._run_tiles if product.tiled else self._run
            out = run(product, lists)
        shape = self._program.maps[-1]
        return out.view(shape.phases, len(cells), shape.scale, shape.scale, -1)

    def _keep_past(self) -> None:
        for data, shape in zip(self._data, self._program.maps, strict=True):
            if shape.past and self._recent is None:
                data[0] = data[-1]
            elif shape.past and self._recent is not None:
                pixels = self._recent.pixels(shape.scale, BORDER).flatten()
                _put(data[0], pixels, _flat(data[-1]).index_select(0, pixels))

    def _run(self, product: Product, lists: Lists) -> Tensor:
        """Compute a layer at cells; returns its rows if they go out of the program."""
        shapes = self._program.maps
        shape, source = shapes[product.source], self._data[product.source]
        seen = lists.seen(shape, product)
        groups, runs = shape.phases // product.pool, len(product.runs)
        total, width = len(seen) // runs, product.weight.shape[1]
        most = min(_NUMBERS_AT_ONCE // len(product.weight), _ROWS_AT_ONCE)
        rows = -(-total // -(-total // max(1, most)))  # as even as they can be
        written = kept = added = None
        if product.target is not None:
            kept = self._data[product.target]
            target = shapes[product.target]
            written = lists.written(target, groups, product.grow, product.corner)
        if product.added is not None:
            added = lists.written(shapes[product.added], groups, 1, None)
        out = source.new_empty(total if kept is None else rows, width)
        view = _runs(source, product.length)
        gathered = source.new_empty(rows * runs, view.shape[1])
        for start in range(0, total, rows):
            end = min(start + rows, total)
            taken = gathered[: (end - start) * runs]
            torch.index_select(view, 0, seen[start * runs : end * runs], out=taken)
            result = out[start:end] if kept is None else out[: end - start]
            _multiply(taken.view(end - start, -1), product, result)
            if product.added is not None and added is not None:
                result += _flat(self._data[product.added]).index_select(0, added[start:end])
            if product.relu:
                result.relu_()
            if kept is not None and written is not None:
                places = written[start * product.grow : end * product.grow]
                _put(kept, places, result)
        return out

    def _run_tiles(self, product: Product, lists: Lists) -> Tensor:
        """The same by tiles."""
        shape, source = self._program.maps[product.source], self._data[product.source]
        seen = lists.seen_by_tiles(shape, product)
        total = seen.shape[1]
        channels, width = product.weight.shape[1:]
        most = _TILED_AT_ONCE // (16 * max(channels, width))
        tiles = -(-total // -(-total // max(1, most)))
        added = None
        if product.target is None:
            places = lists.listed_by_tiles(shape)
            data = source.new_empty(lists.count(shape) + 1, width)
        else:
            target = self._program.maps[product.target]
            places = lists.written_by_tiles(target, shape.phases, product.grow)
            data = _flat(self._data[product.target])
        if product.added is not None:
            added = lists.written_by_tiles(self._program.maps[product.added], shape.phases, 1)
        inwards, outwards = TILE_IN.to(source), TILE_OUT.to(source)
        for start in range(0, total, tiles):
            here = slice(start, min(start + tiles, total))
            gathered = _flat(source).index_select(0, seen[:, here].flatten())
            sums = torch.mm(inwards, gathered.view(16, -1)).view(16, -1, channels)
            made = torch.bmm(sums, product.weight)
            if product.bias is not None:
                made[TILE_BIAS] += product.bias
            result = torch.mm(outwards, made.view(16, -1)).view(-1, width)
            if product.added is not None and added is not None:
                result += _flat(self._data[product.added]).index_select(0, added[:, here].flatten())
            if product.relu:
                result.relu_()
            data.index_copy_(0, places[:, here].flatten(), result.view(-1, data.shape[1]))
        if product.target is None:
            return data[:-1]
        data[0] = 0
        return data


def _flat(data: Tensor) -> Tensor:
    """A map as rows of channels."""
    return data.view(-1, data.shape[-1])


def _runs(data: Tensor, length: int) -> Tensor:
    """A map as rows of ``length`` pixels, one beginning at each pixel."""
    width = data.shape[-1]
    return data.as_strided((data.numel() // width - length + 1, length * width), (width, 1))


def _put(data: Tensor, places: Tensor, rows: Tensor) -> None:
    """Write rows of channels to places of a map."""
    _flat(data).index_copy_(0, places, rows.view(-1, data.shape[-1]))


def _multiply(rows: Tensor, product: Product, out: Tensor) -> None:
    if product.bias is None:
        torch.mm(rows, product.weight, out=out)
    else:
        torch.addmm(product.bias, rows, product.weight, out=out)
