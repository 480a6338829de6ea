"""A block's plan says what was asked for last, whatever was tried of the block before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.moving_kernels import BLOCKS, FRAMES, GRID, HEIGHT, TIMES, WIDTH, clip, near, ways
from torch import Tensor

from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import Anchors, VisibleChange
from stillframe.tokens.grid import Plan
from stillframe.tokens.source import SourceBlock

Tried = Callable[[Motion], None]


def followed(tries: Tried, keeps: list[Tensor] | None) -> tuple[list[tuple[Settled, Plan]], Motion]:
    """Blocks of the clip after the first: what is computed is given, or what motion asks for."""
    torch.manual_seed(0)
    pixels, size = clip("cpu"), FRAMES * TIMES
    tokens = torch.zeros(1, FRAMES, HEIGHT * WIDTH, 4)
    motion, anchors, found = Motion("full", VisibleChange(3.0)), Anchors(), []
    for number in range(BLOCKS):
        now = pixels[:, number * size : (number + 1) * size + TIMES]
        block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], GRID, now, anchors.pixels)
        keep = torch.ones(1, FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
        if not number:
            motion.restart(block)
            anchors.advance(now, keep)
            continue
        motion.begin(block)
        asked = motion.mask(1.0) if keeps is None else keeps[number - 1]
        tries(motion)
        settled, plan = motion.planned(asked.flatten(2))
        anchors.advance(now, asked)
        found.append((settled[0], plan))
    return found, motion


def equal(tries: Tried, keeps: list[Tensor] | None) -> None:
    (mine, one), (other, another) = followed(tries, keeps), followed(lambda motion: None, keeps)
    for (settled, plan), (wanted, its_plan) in zip(mine, other, strict=True):
        assert torch.equal(plan.keep, its_plan.keep)
        assert torch.equal(settled.moved, wanted.moved)
        assert torch.equal(settled.origin, wanted.origin)
        away = settled.moved | settled.stuck
        near(settled.stale[away], wanted.stale[away], 0)
    assert any(settled.moved.any() for settled, _ in mine)
    # what comes next samples the snapshots
    rings = [motion._videos[0]._snapshots._pictures for motion in (one, another)]  # type: ignore[union-attr]
    assert torch.equal(*rings)


def test_another_mask_than_was_proposed() -> None:
    drawn = torch.Generator().manual_seed(3)
    shape = 1, FRAMES, HEIGHT, WIDTH
    keeps = [torch.rand(shape, generator=drawn) < 0.3 for _ in range(BLOCKS - 1)]
    with ways(False):
        equal(lambda motion: motion.mask(1.0), keeps)  # type: ignore[arg-type]


def test_a_score_that_is_asked_for_after_the_mask() -> None:
    with ways(False):
        equal(lambda motion: motion.score(), None)  # type: ignore[arg-type]
