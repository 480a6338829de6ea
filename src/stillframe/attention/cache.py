"""Keys and values of committed (clean) frames - a sink, a recent window - and of the block.

One preallocated buffer a layer, laid out ``[block | sink | ring | scrap]`` in rows of one token, so
that what attention reads is always one contiguous prefix: the order of keys does not matter to
attention. Keys of committed frames are kept *before* rotation as well, because their temporal
position moves (see `rotary.frame_positions`); values need no copy.

In FP8 only what is committed is kept for every layer, keys before rotation and values, in one byte
a number. What attention reads is made of it layer by layer, in one layer's buffer: `open`.

The cache does not know what is attended to, or why: ``block.py`` writes and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.attention.reuse import Bank
from stillframe.attention.rotary import rotate
from stillframe.kernels.placing import rotate_rows
from stillframe.kernels.rows import FP8, Table, packed
from stillframe.kernels.shared import Memory
from stillframe.tokens.grid import Grid

__all__ = ["CacheShape", "KeyValueCache", "context_frames"]


def context_frames(start: int, block: int, sink: int, window: int, oldest: int = 0) -> list[int]:
    """Committed frames that a block attends to, sinks first.

    Args:
        start: absolute index of the block's first frame = number of committed frames.
        block: S.
        sink: number of first frames that always stay visible.
        window: number of latest frames visible, the block's own included.
        oldest: first frame beyond the sink that is there.

    Returns:
        absolute frame indices; the papers' ``m = (1, 6)`` with S=3 gives [0] + the last three.
    """
    first = min(max(start - max(window - block, 0), oldest), start)
    return [f for f in range(min(sink, start)) if f < first] + list(range(first, start))


_COPIED_AT_ONCE = 2**28  # bytes


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

    Args:
        shape: sizes.
        device, dtype: of keys and values.
        memory: of the stream, where buffers are those of streams that take turns; None: its own.
        store: of what is committed: ``dtype`` (None), or `FP8`.
        sink_average: see `StreamSettings`.

    Attributes:
        packed: whether committed frames are kept in FP8.
        sink_average: as it was given.

    Raises:
        ValueError: if the window is smaller than a block.
    """

    def __init__(
        self,
        shape: CacheShape,
        device: torch.device,
        dtype: torch.dtype,
        memory: Memory | None = None,
        store: torch.dtype | None = None,
        sink_average: float | None = None,
    ) -> None:
        if shape.window < shape.grid.frames:
            raise ValueError(
                f"a window of {shape.window} frames is smaller than a block of {shape.grid.frames}"
            )
        self.shape = shape
        inner = (shape.heads, shape.head_dim)
        n = shape.grid.frame_tokens
        committed = (shape.sink + shape.ring) * n
        self.packed = store == FP8
        self.memory = memory = memory or Memory()
        kept = (shape.layers, shape.batch, committed, *inner)
        self._raw = memory.zeros("raw", kept, device, torch.uint8 if self.packed else dtype)
        # rotated anew for every block, as the block's own rows are written
        rows = 1 if self.packed else shape.layers, shape.batch, shape.rows, *inner
        self._keys = memory.zeros("keys", rows, device, dtype, keep=False)
        self._values = memory.zeros("values", rows, device, dtype, keep=False)
        self._committed = self._values[:, :, self.block_rows :]
        if self.packed:
            self._committed = memory.zeros("committed", kept, device, torch.uint8)
        else:
            memory.place.keep("values", self._committed)
        turns = 2, committed if self.packed else 0, shape.head_dim // 2
        self._table = Table(*memory.zeros("turns", turns, device, torch.float32, keep=False))
        self._present = torch.ones((shape.batch, committed), device=device, dtype=torch.bool)
        self.frames = 0
        self.holes = False
        self.sink_average = sink_average
        # frames from here on are there, beside the sink; the ring starts with this one
        self._oldest, self._base = 0, shape.sink

    @property
    def nbytes(self) -> int:
        """Bytes in memory, those of buffers that streams share included."""
        buffers = [self._raw, self._keys, self._values, self._present, *self._table]
        return sum(x.nbytes for x in (*buffers, *([self._committed] if self.packed else [])))

    @property
    def block_rows(self) -> int:
        """S*N: the first rows of a layer's buffer belong to the block."""
        return self.shape.grid.tokens

    def keys(self, layer: int) -> Tensor:
        """Rotated keys of a layer, (B, rows, heads, head_dim); its first rows are the block's."""
        return self._keys[0 if self.packed else layer]

    def values(self, layer: int) -> Tensor:
        """Values of a layer, (B, rows, heads, head_dim)."""
        return self._values[0 if self.packed else layer]

    def open(self, layer: int) -> None:
        """Have a layer's visible frames in `keys` and `values`; before its attention in a pass."""
        count = self.visible_rows() - self.block_rows
        if not self.packed or not count:
            return
        table = Table(*(x[:count] for x in self._table))
        seen = slice(self.block_rows, self.block_rows + count)
        for row in range(self.shape.batch):
            raw, keys = self._raw[layer, row].flatten(1), self._keys[0, row].flatten(1)
            rotate_rows(raw[None], table, keys[None], self.block_rows)
            self._values[0, row, seen].copy_(self._committed[layer, row, :count].view(FP8))

    def context(self) -> list[int]:
        """Absolute indices of the committed frames the next block sees."""
        s = self.shape
        return context_frames(self.frames, s.grid.frames, s.sink, s.window, self._oldest)

    def sink_rows(self) -> slice:
        """Rows of the prefix that attention reads which are a sink's, once a frame has left the
        window; none before."""
        s = self.shape
        left = self.frames + s.grid.frames > s.sink + s.window
        return slice(self.block_rows, self.block_rows + left * s.sink * s.grid.frame_tokens)

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
        if self.packed:
            self._table.cos[:count] = table.real
            self._table.sin[:count] = table.imag
        elif count:
            start = self.block_rows
            for layer in range(self.shape.layers):
                rotated = rotate(self._raw[layer, :, :count], table)
                self._keys[layer, :, start : start + count] = rotated

    def storage_order(self) -> list[int]:
        """The frames of `context` in the order in which their rows are stored."""
        return sorted(self.context(), key=self._slot)

    def _slot(self, frame: int) -> int:
        s = self.shape
        return frame if frame < s.sink else s.sink + (frame - self._base) % s.ring

    def _rows_of(self, frame: int) -> slice:
        n = self.shape.grid.frame_tokens
        return slice(self._slot(frame) * n, (self._slot(frame) + 1) * n)

    def all_keys(self) -> Tensor:
        """`keys` of all layers, (L, B, rows, heads, head_dim); not in FP8."""
        return self._keys

    @property
    def bank(self) -> Bank:
        """Rows of committed frames, those that `last_frame` and `stored` number; a view."""
        return Bank(self._raw.unsqueeze(0), self._committed.unsqueeze(0))

    def last_frame(self) -> Tensor:
        """(N,) int64 rows of `bank` of the last committed frame; those of some frame before one."""
        start = self._rows_of(self.frames - 1).start if self.frames else 0
        return torch.arange(start, start + self.shape.grid.frame_tokens, device=self._raw.device)

    def commit(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a finished block's clean keys (before rotation) and values, (B, S*N, heads, dim).

        Call it for every layer, then `advance` once.
        """
        self._commit(slice(layer, layer + 1), keys.unsqueeze(0), values.unsqueeze(0))

    def _commit(self, layers: slice, keys: Tensor, values: Tensor) -> None:
        """`commit` of some layers, (L', B, S*N, heads, dim)."""
        n = self.shape.grid.frame_tokens
        for j, rows in self.stored():
            own = slice(j * n, (j + 1) * n)
            self._raw[layers, :, rows] = packed(keys[:, :, own], self._raw)
            self._committed[layers, :, rows] = packed(values[:, :, own], self._committed)

    def repeat_last(self, places: Tensor) -> None:
        """Commit a block of which nothing is computed: copies of tokens of the last frame.

        Args:
            places: (B, S, N) place in the last committed frame of each token, `Plan.traced`.
        """
        rows = self.last_frame()[places].flatten(1)
        # a kernel a layer takes a GPU longer to launch than to run
        size = rows.numel() * self.shape.heads * self.shape.head_dim * self._raw.itemsize
        step = max(_COPIED_AT_ONCE // size, 1)
        for first in range(0, self.shape.layers, step):
            layers = slice(first, first + step)
            self._commit(layers, *(_taken(x[0, layers], rows) for x in self.bank))

    def advance(self, present: Tensor | None = None) -> None:
        """Count the block as committed; ``present`` (B, S*N) marks its holes, None: no holes."""
        n = self.shape.grid.frame_tokens
        self.holes |= present is not None
        for j, rows in self.stored():
            own = slice(j * n, (j + 1) * n)
            self._present[:, rows] = True if present is None else present[:, own]
        self.frames += self.shape.grid.frames
        if self.sink_average is not None:
            self._average(self.sink_average)

    def _average(self, kept: float) -> None:
        """Let the sink come nearer to the block just committed, if frames have left the window."""
        s = self.shape
        if not s.sink or self.frames - s.ring <= s.sink:
            return
        sink = slice(0, s.sink * s.grid.frame_tokens)
        latest = [self._rows_of(f) for f in range(self.frames - s.sink, self.frames)]
        rows = torch.cat([torch.arange(x.start, x.stop) for x in latest]).to(self._raw.device)
        # what a pruned token has left empty is no part of it
        share = (1 - kept) * self._present[:, rows, None, None]
        for store in (self._raw, self._committed):
            store[:, :, sink] = torch.lerp(store[:, :, sink], store[:, :, rows], share.to(store))

    def rewind(self, blocks: int) -> None:
        """Forget the latest blocks, to be committed anew, and all before them but the sink."""
        self.frames = max(self.frames - blocks * self.shape.grid.frames, 0)
        self._oldest, self._base = self.frames, max(self.frames, self.shape.sink)

    def stored(self) -> list[tuple[int, slice]]:
        """Index in the block, and rows of `bank`, of the block's frames that are needed later."""
        s = self.shape
        end = self.frames + s.grid.frames
        return [
            (frame - self.frames, self._rows_of(frame))
            for frame in range(self.frames, end)
            if frame < s.sink or frame >= end - s.ring
        ]


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, K) of (L, B, R, heads, dim), of every layer: (L, B, K, heads, dim)."""
    return torch.stack([x[:, b].index_select(1, row) for b, row in enumerate(rows)], 1)
