"""Rotary positions: diffusers' own rotation, re-rotation, and positions of an endless stream."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tests.tiny import stock_rotate, stock_table

from stillframe.attention.cache import context_frames
from stillframe.attention.rotary import frame_positions, rotary_table, rotate
from stillframe.backbones.wan import rotary_axes
from stillframe.tokens.grid import Grid

GRID = Grid(3, 4, 5)


@pytest.fixture(params=[12, 24, 128])
def rope(request: pytest.FixtureRequest) -> WanRotaryPosEmbed:
    return WanRotaryPosEmbed(request.param, (1, 2, 2), 1024)


def test_rotation_is_diffusers_own(rope: WanRotaryPosEmbed) -> None:
    frames = [0, 7, 3, 20]
    x = torch.randn(2, len(frames) * GRID.frame_tokens, 3, rope.attention_head_dim)
    table = rotary_table(rotary_axes(rope), frames, GRID.height, GRID.width)
    expected = stock_rotate(x, stock_table(rope, frames, GRID))
    torch.testing.assert_close(rotate(x, table), expected, rtol=0, atol=1e-5)


def test_a_rerotated_key_is_the_key_computed_there(rope: WanRotaryPosEmbed) -> None:
    """From where it was to where it is used: rotating by the difference equals rotating anew."""
    key = torch.randn(1, GRID.frame_tokens, 2, rope.attention_head_dim)
    was, now = (rotary_table(rotary_axes(rope), [f], GRID.height, GRID.width) for f in (19, 4))
    moved = rotate(rotate(key, was), now * was.conj())
    there = stock_rotate(key, stock_table(rope, [4], GRID))
    torch.testing.assert_close(moved, there, rtol=0, atol=1e-5)


def test_scores_depend_on_relative_positions_only(rope: WanRotaryPosEmbed) -> None:
    query, key = torch.randn(2, 1, GRID.frame_tokens, 2, rope.attention_head_dim)
    scores = []
    for shift in (0, 1000):
        at = [rotary_table(rotary_axes(rope), [f + shift], GRID.height, GRID.width) for f in (5, 2)]
        scores.append(rotate(query, at[0]).flatten(1) @ rotate(key, at[1]).flatten(1).T)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-3)


def test_rotation_takes_a_table_a_batch_row_and_keeps_the_dtype() -> None:
    rope = WanRotaryPosEmbed(24, (1, 2, 2), 64)
    table = rotary_table(rotary_axes(rope), range(3), GRID.height, GRID.width)
    pick = torch.randint(GRID.tokens, (2, 6))
    x = torch.randn(2, 6, 2, 24)
    each = torch.cat([rotate(x[b : b + 1], table[pick[b]]) for b in range(2)])
    assert torch.equal(rotate(x, table[pick]), each)
    half = rotate(x.bfloat16(), table[pick])
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate(x.bfloat16().float(), table[pick]).bfloat16())


@pytest.mark.parametrize(
    ("frames", "height", "width"), [([16], 4, 5), ([-1], 4, 5), ([0], 17, 5), ([0], 4, 17)]
)
def test_positions_outside_the_table_are_refused(
    frames: list[int], height: int, width: int
) -> None:
    rope = WanRotaryPosEmbed(12, (1, 2, 2), 16)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.15"):
        rotary_table(rotary_axes(rope), frames, height, width)


@pytest.mark.parametrize(
    ("block", "sink", "window", "limit"),
    [(3, 1, 6, 21), (1, 0, 1, 1), (2, 4, 7, 11), (4, 0, 9, 64)],
)
def test_frame_positions(block: int, sink: int, window: int, limit: int) -> None:
    for start in [*range(0, 8 * block, block), 100 * block, 5000 * block]:
        context = context_frames(start, block, sink, window)
        own, at = frame_positions(start, block, context, sink, limit)
        used = [*own, *at]
        assert all(0 <= position < limit for position in used)
        assert len(set(used)) == len(used), "two frames stand at one position"
        assert own == list(range(own[0], own[0] + block))
        if start + block <= limit:
            assert own == list(range(start, start + block))
            assert at == context
        else:
            assert own[-1] == limit - 1
        for frame, position in zip(context, at, strict=True):
            if frame < sink:
                assert position == frame
            else:
                assert own[0] - position == start - frame


def test_frame_positions_stand_still_once_saturated() -> None:
    later = [
        frame_positions(start, 3, context_frames(start, 3, 1, 6), 1, 21)
        for start in (18, 21, 300, 5001, 3_000_000)
    ]
    assert all(positions == later[0] for positions in later)
