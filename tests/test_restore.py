"""Restoration against its slow twin, and against the definition token by token."""

from __future__ import annotations

import pytest
import torch

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
