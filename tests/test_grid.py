"""Token grid: cutting into tokens and back, and plans of which tokens to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillframe.tokens.grid import Grid, Slots, patchify, plan_tokens, put, take, unpatchify

GRID = Grid(3, 4, 5)


def masks() -> list[Tensor]:
    """Keep masks (B, S, N): none, all, one token, all but one, uneven rows, a row of each kind."""
    shape = (3, GRID.frames, GRID.frame_tokens)
    one = torch.zeros(shape, dtype=torch.bool)
    one[1, 2, 7] = True
    uneven = torch.rand(shape) < torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)
    extreme = torch.rand(shape) < torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    everything = torch.ones(shape, dtype=torch.bool)
    return [~everything, everything, one, ~one, uneven, extreme]


def test_sizes() -> None:
    assert (GRID.frame_tokens, GRID.tokens) == (20, 60)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_undoes_patchify(patch: int) -> None:
    x = torch.randn(2, 5, GRID.frames, GRID.height * patch, GRID.width * patch)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, GRID.tokens, patch * patch * 5)
    assert torch.equal(unpatchify(tokens, GRID, patch), x)


def test_a_token_is_its_place_row_after_row_frame_after_frame() -> None:
    x = torch.randn(2, 5, GRID.frames, 2 * GRID.height, 2 * GRID.width)
    tokens = patchify(x, 2)
    for t, i, j in ((0, 0, 0), (1, 2, 3), (2, 3, 4)):
        slot = (t * GRID.height + i) * GRID.width + j
        for a in range(2):
            for b in range(2):
                there = x[:, :, t, 2 * i + a, 2 * j + b]
                assert torch.equal(tokens[:, slot].view(2, 2, 2, 5)[:, a, b], there)


def test_patchify_has_the_layout_of_the_model(transformer: Any) -> None:
    """Tokens through the embedding as a matrix, and what proj_out hands to the stock forward."""
    x = torch.randn(2, 4, GRID.frames, 2 * GRID.height, 2 * GRID.width)
    convolution = transformer.patch_embedding
    expected = convolution(x).flatten(2).transpose(1, 2)
    matrix = convolution.weight[:, :, 0].permute(0, 2, 3, 1).flatten(1)
    got = patchify(x, 2) @ matrix.T + convolution.bias
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    captured: list[Tensor] = []
    hook = transformer.proj_out.register_forward_hook(lambda _m, _i, out: captured.append(out))
    with torch.no_grad():
        out = transformer(x, torch.tensor([5.0, 7.0]), torch.randn(2, 3, 16), return_dict=False)[0]
    hook.remove()
    assert torch.equal(unpatchify(captured[0], GRID, 2), out)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
def test_patchify_refuses_sides_that_do_not_divide(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} do not divide into 2x2"):
        patchify(torch.zeros(1, 1, 1, *shape), 2)


@pytest.mark.parametrize("case", range(6))
def test_plan_lists_each_rows_slots_in_order(case: int) -> None:
    keep = masks()[case]
    plan, rows = plan_tokens(keep), keep.flatten(1)
    assert plan.counts == tuple(int(row.sum()) for row in rows)
    assert plan.kept_share == pytest.approx(float(keep.float().mean()))
    assert plan.nothing == (not keep.any())
    assert plan.everything == bool(keep.all())
    for kept, row in zip(plan.rows.flatten(1), rows, strict=True):
        assert kept[row].tolist() == list(range(int(row.sum())))
        assert (kept[~row] == -1).all()
    if plan.kept is None:
        assert plan.everything
        return
    for index, target, row in zip(*plan.kept, rows, strict=True):
        assert target[target >= 0].tolist() == row.nonzero().flatten().tolist()
        assert torch.equal(index, target.clamp(min=0))
    assert plan.kept.index.shape[1] == int(rows.sum(1).max())


@pytest.mark.parametrize("case", range(1, 6))
def test_scattered_tokens_stand_at_their_slots(case: int) -> None:
    keep = masks()[case]
    plan, whole = plan_tokens(keep), torch.randn(3, GRID.tokens, 2, 3)
    own = whole if plan.kept is None else take(whole, plan.kept.index)
    expected = whole * keep.flatten(1)[..., None, None]
    assert torch.equal(plan.scattered(own), expected)


def _every(keep: Tensor) -> Slots:
    slots = torch.arange(keep[0].numel()).expand(len(keep), -1)
    return Slots(slots, slots)


@pytest.mark.parametrize("spare", [1, 4])
@pytest.mark.parametrize("case", [0, 2, 3, 4, 5])
def test_put_undoes_take_and_spares_every_other_row(case: int, spare: int) -> None:
    """Whatever lies behind the block's rows stays as it was, but for the very last row."""
    plan = plan_tokens(masks()[case])
    assert plan.kept is not None
    before = torch.randn(3, GRID.tokens + spare, 2, 3)
    source = torch.randn(3, GRID.tokens, 2, 3)
    after = before.clone()
    put(after, plan.kept, take(source, plan.kept.index))
    keep = plan.keep.flatten(1)[..., None, None]
    expected = torch.where(keep, source, before[:, : GRID.tokens])
    assert torch.equal(after[:, : GRID.tokens], expected)
    assert torch.equal(after[:, GRID.tokens : -1], before[:, GRID.tokens : -1])
    others = plan_tokens(~plan.keep).kept or _every(plan.keep)
    put(after, others, take(source, others.index))
    assert torch.equal(after[:, : GRID.tokens], source)
    assert torch.equal(after[:, GRID.tokens : -1], before[:, GRID.tokens : -1])


def test_take_is_a_gather_along_rows() -> None:
    buffer, index = torch.randn(3, 7, 2), torch.randint(7, (3, 9))
    expected = torch.stack([buffer[b][index[b]] for b in range(3)])
    assert torch.equal(take(buffer, index), expected)
