"""Keys and values of committed (clean) frames - a sink, a recent window - and of the block.

One preallocated buffer a layer, laid out ``[block | sink | ring | scrap]`` in rows of one token, so
that what attention reads is always one contiguous prefix: the order of keys does not matter to
attention. Keys of committed frames are kept *before* rotation as well, because their temporal
position moves (see `rotary.frame_positions`); values need no copy.

The cache does not know what is attended to, or why: ``block.py`` writes and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.attention.reuse import Bank
from stillframe.attention.rotary import rotate
from stillframe.tokens.grid import Grid, take

__all__ = ["CacheShape", "KeyValueCache", "context_frames"]


def context_frames(start: int, block: int, sink: int, window: int) -> list[int]:
    """Committed frames that a block attends to, sinks first.

    Args:
        start: absolute index of the block's first frame = number of committed frames.
        block: S.
        sink: number of first frames that always stay visible.
        window: number of latest frames visible, the block's own included.

    Returns:
        absolute frame indices; the papers' ``m = (1, 6)`` with S=3 gives [0] + the last three.
    """
    first = max(start - max(window - block, 0), 0)
    return [f for f in range(min(sink, start)) if f < first] + list(range(first, start))


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a cache.

    Attributes:
        layers: transformer layers.
        batch: B.
        grid: the block's S x h x w tokens.
        heads, head_dim: of self-attention.
        sink: sink frames.
        window: recent frames visible, the block's own S included; at least S.
    """

    layers: int
    batch: int
    grid: Grid
    heads: int
    head_dim: int
    sink: int
    window: int

    @property
    def ring(self) -> int:
        """Recent frames stored: those visible, and at least the last one, which recovery copies."""
        return max(self.window - self.grid.frames, 1)

    @property
    def rows(self) -> int:
        """Rows of a layer's buffer, scrap row included."""
        return (self.grid.frames + self.sink + self.ring) * self.grid.frame_tokens + 1


class KeyValueCache:
    """Committed frames of one stream. Advanced by the block loop alone.

    Raises:
        ValueError: if the window is smaller than a block.
    """

    def __init__(self, shape: CacheShape, device: torch.device, dtype: torch.dtype) -> None:
        if shape.window < shape.grid.frames:
            raise ValueError(
                f"a window of {shape.window} frames is smaller than a block of {shape.grid.frames}"
            )
        self.shape = shape
        inner = (shape.heads, shape.head_dim)
        n = shape.grid.frame_tokens
        committed = (shape.sink + shape.ring) * n
        lead = (shape.layers, shape.batch)
        self._raw = torch.zeros((*lead, committed, *inner), device=device, dtype=dtype)
        self._keys = torch.zeros((*lead, shape.rows, *inner), device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self._present = torch.ones((shape.batch, committed), device=device, dtype=torch.bool)
        self.frames = 0
        self.holes = False

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(t.nbytes for t in (self._raw, self._keys, self._values, self._present))

    @property
    def block_rows(self) -> int:
        """S*N: the first rows of a layer's buffer belong to the block."""
        return self.shape.grid.tokens

    def keys(self, layer: int) -> Tensor:
        """Rotated keys of a layer, (B, rows, heads, head_dim); its first rows are the block's."""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """Values of a layer, (B, rows, heads, head_dim)."""
        return self._values[layer]

    def context(self) -> list[int]:
        """Absolute indices of the committed frames the next block sees."""
        s = self.shape
        return context_frames(self.frames, s.grid.frames, s.sink, s.window)

    def visible_rows(self) -> int:
        """Length of the prefix that attention reads: the block and the frames it sees."""
        return (self.shape.grid.frames + len(self.context())) * self.shape.grid.frame_tokens

    def present(self) -> Tensor:
        """(B, visible rows past the block) bool: which committed tokens exist (plain pruning).

        All of them while ``holes`` is false.
        """
        return self._present[:, : self.visible_rows() - self.block_rows]

    def place(self, table: Tensor) -> None:
        """Rotate the visible committed keys to their positions for the coming block.

        Args:
            table: (visible committed rows, head_dim/2) complex64, sink frames first, then the ring
                in *storage* order, see `storage_order`.
        """
        count = table.shape[0]
        if count:
            start = self.block_rows
            for layer in range(self.shape.layers):
                rotated = rotate(self._raw[layer, :, :count], table)
                self._keys[layer, :, start : start + count] = rotated

    def storage_order(self) -> list[int]:
        """The frames of `context` in the order in which their rows are stored."""
        return sorted(self.context(), key=self._slot)

    def _slot(self, frame: int) -> int:
        s = self.shape
        return frame if frame < s.sink else s.sink + (frame - s.sink) % s.ring

    def _rows_of(self, frame: int) -> slice:
        n = self.shape.grid.frame_tokens
        return slice(self._slot(frame) * n, (self._slot(frame) + 1) * n)

    def all_keys(self) -> Tensor:
        """`keys` of all layers, (L, B, rows, heads, head_dim)."""
        return self._keys

    @property
    def bank(self) -> Bank:
        """Rows of committed frames, those that `last_frame` and `stored` number; a view."""
        return Bank(self._raw.unsqueeze(0), self._values[:, :, self.block_rows :].unsqueeze(0))

    def last_frame(self) -> Tensor:
        """(N,) int64 rows of `bank` of the last committed frame; those of some frame before one."""
        start = self._rows_of(self.frames - 1).start if self.frames else 0
        return torch.arange(start, start + self.shape.grid.frame_tokens, device=self._raw.device)

    def commit(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a finished block's clean keys (before rotation) and values, (B, S*N, heads, dim).

        Call it for every layer, then `advance` once.
        """
        n = self.shape.grid.frame_tokens
        for j, rows in self.stored():
            start = self.block_rows
            own = slice(j * n, (j + 1) * n)
            self._raw[layer, :, rows] = keys[:, own]
            self._values[layer, :, start + rows.start : start + rows.stop] = values[:, own]

    def repeat_last(self, places: Tensor) -> None:
        """Commit a block of which nothing is computed: copies of tokens of the last frame.

        Args:
            places: (B, S, N) place in the last committed frame of each token, `Plan.traced`.
        """
        rows = self.last_frame()[places].flatten(1)
        for layer in range(self.shape.layers):
            keys, values = self.bank.rows(0, layer)
            self.commit(layer, take(keys, rows), take(values, rows))

    def advance(self, present: Tensor | None = None) -> None:
        """Count the block as committed; ``present`` (B, S*N) marks its holes, None: no holes."""
        n = self.shape.grid.frame_tokens
        self.holes |= present is not None
        for j, rows in self.stored():
            own = slice(j * n, (j + 1) * n)
            self._present[:, rows] = True if present is None else present[:, own]
        self.frames += self.shape.grid.frames

    def stored(self) -> list[tuple[int, slice]]:
        """Index in the block, and rows of `bank`, of the block's frames that are needed later."""
        s = self.shape
        end = self.frames + s.grid.frames
        return [
            (frame - self.frames, self._rows_of(frame))
            for frame in range(self.frames, end)
            if frame < s.sink or frame >= end - s.ring
        ]
