"""The cache of committed frames: which frames are visible, and that their rows are theirs."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tests.tiny import stock_rotate, stock_table, visible_frames
from torch import Tensor

from stillframe.attention.cache import CacheShape, KeyValueCache, context_frames
from stillframe.attention.rotary import rotary_table
from stillframe.backbones.wan import rotary_axes
from stillframe.tokens.grid import Grid

LAYERS, BATCH, HEADS, DIM, N = 2, 2, 2, 12, 4
SHAPES = [(3, 1, 6), (3, 0, 3), (3, 2, 3), (3, 5, 7), (2, 1, 5), (1, 0, 1), (1, 3, 2), (1, 1, 4)]


def cache(size: int, sink: int, window: int) -> KeyValueCache:
    shape = CacheShape(LAYERS, BATCH, Grid(size, 2, 2), HEADS, DIM, sink, window)
    return KeyValueCache(shape, torch.device("cpu"), torch.float32)


def last(store: KeyValueCache, layer: int) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values of the last committed frame."""
    keys, values = store.bank.rows(0, layer)
    return keys[:, store.last_frame()], values[:, store.last_frame()]


def commit(store: KeyValueCache, present: Tensor | None = None) -> dict[int, Tensor]:
    """Commit one block of random keys; returns them by frame, (layers, 2, B, N, heads, dim)."""
    size = store.shape.grid.frames
    both = torch.randn(LAYERS, 2, BATCH, size * N, HEADS, DIM)
    for layer in range(LAYERS):
        store.commit(layer, both[layer, 0], both[layer, 1])
    start = store.frames
    store.advance(present)
    return {start + j: both[:, :, :, j * N : (j + 1) * N] for j in range(size)}


@pytest.mark.parametrize(("size", "sink", "window"), SHAPES)
def test_context_is_what_the_definition_says(size: int, sink: int, window: int) -> None:
    for block in range(12):
        start = block * size
        expected = [f for f in visible_frames(block, size, sink, window) if f < start]
        assert context_frames(start, size, sink, window) == expected


def test_the_papers_window_is_the_first_and_the_last_three() -> None:
    assert context_frames(30, 3, 1, 6) == [0, 27, 28, 29]


@pytest.mark.parametrize(("size", "sink", "window"), SHAPES)
def test_rows_hold_exactly_the_visible_frames(size: int, sink: int, window: int) -> None:
    store = cache(size, sink, window)
    rope = WanRotaryPosEmbed(DIM, (1, 2, 2), 64)
    frames: dict[int, Tensor] = {}
    for _ in range(12):
        order = store.storage_order()
        assert sorted(order) == store.context()
        assert store.visible_rows() == (size + len(order)) * N
        if order:
            at = [3 * (f % 17) for f in order]
            store.place(rotary_table(rotary_axes(rope), at, 2, 2))
            table = stock_table(rope, at, store.shape.grid)
            rows = slice(size * N, store.visible_rows())
            for layer in range(LAYERS):
                keys, values = (torch.cat([frames[f][layer, i] for f in order], 1) for i in (0, 1))
                placed = store.keys(layer)[:, rows]
                torch.testing.assert_close(placed, stock_rotate(keys, table), rtol=0, atol=1e-5)
                assert torch.equal(store.values(layer)[:, rows], values)
        frames |= commit(store)
        for layer in range(LAYERS):
            for got, expected in zip(
                last(store, layer), frames[store.frames - 1][layer], strict=True
            ):
                assert torch.equal(got, expected)


@pytest.mark.parametrize(("size", "sink", "window"), SHAPES)
def test_holes_follow_their_frames(size: int, sink: int, window: int) -> None:
    store = cache(size, sink, window)
    frames: dict[int, Tensor] = {}
    for block in range(12):
        expected = [frames[f] for f in store.storage_order()]
        present = store.present()
        assert present.shape == (BATCH, len(expected) * N)
        if expected:
            assert torch.equal(present, torch.cat(expected, 1))
        keep = torch.rand(BATCH, size * N) < 0.5
        holes = None if block % 4 == 0 else keep
        commit(store, holes)
        assert store.holes == (block > 0)
        keep = torch.ones_like(keep) if holes is None else keep
        for j in range(size):
            frames[block * size + j] = keep[:, j * N : (j + 1) * N]


@pytest.mark.parametrize("at_once", [1, 2**28])
@pytest.mark.parametrize(("size", "sink", "window"), SHAPES)
def test_repeating_the_last_frame_is_committing_copies_of_it(
    size: int, sink: int, window: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillframe.attention.cache._COPIED_AT_ONCE", at_once)
    left, right = cache(size, sink, window), cache(size, sink, window)
    for block in range(7):
        torch.manual_seed(block)
        commit(left)
        torch.manual_seed(block)
        commit(right)
        left.repeat_last(torch.arange(N).expand(BATCH, size, N))
        left.advance()
        for layer in range(LAYERS):
            key, value = (x.repeat(1, size, 1, 1) for x in last(right, layer))
            right.commit(layer, key, value)
        right.advance()
        table = torch.ones(left.visible_rows() - left.block_rows, DIM // 2, dtype=torch.complex64)
        for store in (left, right):
            store.place(table)
        rows = left.visible_rows()
        for layer in range(LAYERS):
            assert torch.equal(left.keys(layer)[:, :rows], right.keys(layer)[:, :rows])
            assert torch.equal(left.values(layer)[:, :rows], right.values(layer)[:, :rows])


def test_memory_is_bounded_and_counted() -> None:
    store = cache(3, 1, 6)
    held = store.nbytes
    committed, rows = (1 + 3) * N, (3 + 1 + 3) * N + 1
    vector = LAYERS * BATCH * HEADS * DIM * 4
    assert held == vector * (committed + 2 * rows) + BATCH * committed
    place = store.keys(0).data_ptr()
    for _ in range(50):
        commit(store)
    assert store.nbytes == held
    assert store.keys(0).data_ptr() == place


def test_a_window_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="window of 2 frames is smaller than a block of 3"):
        cache(3, 1, 2)
