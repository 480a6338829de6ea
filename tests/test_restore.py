"""Restoration against its slow twin, and against the definition token by token."""

from __future__ import annotations

import pytest
import torch

from stillframe.tokens.grid import plan_tokens
from stillframe.tokens.restore import predecessor_rows, restore, restore_slowly

BATCH, FRAMES, TOKENS = 3, 4, 7


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_restore_equals_its_slow_twin(share: float) -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < share
    own, previous = torch.randn(BATCH, FRAMES * TOKENS, 5), torch.randn(BATCH, TOKENS, 5)
    restored = restore(own, previous, predecessor_rows(keep))
    assert torch.equal(restored, restore_slowly(own, previous, keep))


def test_restore_equals_the_definition_token_by_token() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.4
    own, previous = torch.randn(BATCH, FRAMES, TOKENS, 2), torch.randn(BATCH, TOKENS, 2)
    restored = restore(own.flatten(1, 2), previous, predecessor_rows(keep)).view_as(own)
    for b in range(BATCH):
        for p in range(TOKENS):
            value = previous[b, p]
            for t in range(FRAMES):
                value = own[b, t, p] if keep[b, t, p] else value
                assert torch.equal(restored[b, t, p], value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_displaced_tokens_are_restored_as_by_the_slow_twin(share: float) -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < share
    plan = plan_tokens(keep, torch.randint(TOKENS, keep.shape))
    own, previous = torch.randn(BATCH, FRAMES * TOKENS, 5), torch.randn(BATCH, TOKENS, 5)
    restored = restore(own, previous, plan.provider)
    assert torch.equal(restored, restore_slowly(own, previous, keep, plan.origin))
    assert torch.equal(restored, restore_slowly(own, previous, keep)) == (share == 1.0)


def test_displaced_tokens_are_restored_token_by_token() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.4
    origin = torch.randint(TOKENS, keep.shape)
    plan = plan_tokens(keep, origin)
    own, previous = torch.randn(BATCH, FRAMES, TOKENS, 2), torch.randn(BATCH, TOKENS, 2)
    restored = restore(own.flatten(1, 2), previous, plan.provider).view_as(own)
    for b, t, p in torch.cartesian_prod(*(torch.arange(n) for n in keep.shape)).tolist():
        place, traced, value = p, p, None
        for before in range(t, -1, -1):
            if value is None and keep[b, before, place]:
                value = own[b, before, place]
            place = int(origin[b, before, place])
            # a computed token's content was where it is
            traced = traced if keep[b, before, traced] else int(origin[b, before, traced])
        assert torch.equal(restored[b, t, p], previous[b, place] if value is None else value)
        assert plan.traced[b, t, p] == traced


def test_the_last_frame_is_traced_to_every_frame_of_the_block() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.3
    plan = plan_tokens(keep, torch.randint(TOKENS, keep.shape))
    assert plan.traced_from_last is not None
    for t in range(FRAMES):
        later = plan_tokens(
            keep[:, t + 1 :], None if plan.origin is None else plan.origin[:, t + 1 :]
        )
        expected = later.traced[:, -1] if t + 1 < FRAMES else torch.arange(TOKENS).expand(BATCH, -1)
        assert torch.equal(plan.traced_from_last[:, t], expected)


def test_places_that_hold_everything_are_no_motion() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.5
    own = torch.arange(TOKENS).expand(keep.shape)
    anywhere = torch.randint(TOKENS, keep.shape)
    for origin in (own, torch.where(keep, anywhere, own)):
        plan = plan_tokens(keep, origin)
        assert plan.origin is None
        assert plan.counts == plan_tokens(keep).counts
        assert plan.traced_from_last is None
        assert torch.equal(plan.traced, own)
    assert plan_tokens(torch.ones_like(keep), anywhere).origin is None


def test_what_stands_at_pruned_slots_is_never_read() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.5
    own = torch.randn(BATCH, FRAMES * TOKENS, 2)
    poisoned = own.masked_fill(~keep.flatten(1).unsqueeze(-1), float("nan"))
    restored = restore(poisoned, torch.randn(BATCH, TOKENS, 2), predecessor_rows(keep))
    assert torch.isfinite(restored).all()


def test_keys_and_values_of_several_heads_are_restored_like_vectors() -> None:
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.5
    own, previous = torch.randn(BATCH, FRAMES * TOKENS, 2, 6), torch.randn(BATCH, TOKENS, 2, 6)
    rows = predecessor_rows(keep)
    flat = restore(own.flatten(2), previous.flatten(2), rows)
    assert torch.equal(restore(own, previous, rows).flatten(2), flat)


def test_block_by_block_equals_all_at_once() -> None:
    """The last restored frame carries over, so how frames are cut into blocks does not show."""
    keep = torch.rand(BATCH, FRAMES, TOKENS) < 0.3
    own, previous = torch.randn(BATCH, FRAMES, TOKENS, 2), torch.randn(BATCH, TOKENS, 2)
    at_once = restore(own.flatten(1, 2), previous, predecessor_rows(keep)).view_as(own)
    for t in range(FRAMES):
        previous = restore(own[:, t], previous, predecessor_rows(keep[:, t : t + 1]))
        assert torch.equal(previous, at_once[:, t])
