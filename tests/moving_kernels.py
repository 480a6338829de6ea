"""What moved, by kernels and in torch: the same verdicts, tokens and pictures, block by block.

A texture pans over the left of the picture, by a flow that is known; the right stands still, but
for a corner that is brighter from block to block. A place gets brighter all the time, and in other
corners flow is stretched or comes from beyond the edge. Run by fused_kernels.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import islice
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection import dense, sparse
from stillframe.detection import motion as motion_module
from stillframe.detection.flow import OpticalFlow, luma
from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import Anchors, VisibleChange
from stillframe.detection.traces import Moved
from stillframe.engine.compose import ShownPictures
from stillframe.engine.moved import MovedPictures
from stillframe.engine.results import Results
from stillframe.kernels import graphs, moving
from stillframe.kernels import visible as visible_kernels
from stillframe.kernels.graphs import Graphs
from stillframe.kernels.shared import Find, Workplace, own_workplaces, shared_workplace
from stillframe.tokens.grid import Grid, Plan
from stillframe.tokens.source import SourceBlock

FRAMES, TIMES, HEIGHT, WIDTH = 2, 4, 3, 4
GRID = Grid(FRAMES, HEIGHT, WIDTH)
ROWS, COLUMNS = 16 * HEIGHT, 16 * WIDTH
VELOCITY = torch.tensor([0.73, 0.31])  # no pixel comes from a place half-way between others
SLIDE = 1.53  # down, in a corner
BLOCKS = 4
CHANNELS = 3


def clip(device: str) -> Tensor:
    """(1, (1 + BLOCKS*S)*t, 3, H, W) in [0, 1], of whole grey levels."""
    small = torch.rand(1, 3, 40, 40)
    texture = F.interpolate(small, scale_factor=4, mode="bicubic")
    y, x = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    frames = []
    for number in range((1 + BLOCKS * FRAMES) * TIMES):
        places = torch.stack([x, y], -1) + 30 + VELOCITY * number * (x < 48)[..., None]
        grid = (2 * places + 1) / 160 - 1
        frame = F.grid_sample(texture, grid[None].float(), mode="bicubic", align_corners=False)[0]
        frame[:, 16:32, 16:32] += 0.01 * max(number - 3 * TIMES * FRAMES, 0)
        # in the last block what stands still would be as like its place as itself moved by nothing
        light = min((number - TIMES) // (FRAMES * TIMES), BLOCKS - 2)
        frame[:, 32:, 48:] += 0.04 * light
        # content slides in from beyond the edge, and starts anew with each block
        slid = (y - SLIDE * ((number - TIMES) % (FRAMES * TIMES)))[:16, :16]
        frame[:, :16, :16] = 0.2 + 6 / 255 * slid.clamp(min=0)
        frames.append((255 * frame.clamp(0, 1)).round() / 255)
    return torch.stack(frames)[None].to(device)


@cache
def known_flow(device: torch.device) -> Tensor:
    """That of the clip, from the frames of a latent frame to the middle of the one before."""
    steps = torch.arange(TIMES) + TIMES - TIMES // 2
    found = (VELOCITY * steps[:, None])[:, None, None].repeat(1, ROWS, COLUMNS, 1)
    found[:, :, 48:] = 0
    found[:, :16, :16, 0], found[:, :16, :16, 1] = 0, -SLIDE * steps[:, None, None]
    found[:, 32:, :16, 0] += torch.arange(16) * 0.31
    return found.to(device)


class Block(NamedTuple):
    """What came of a block."""

    keep: Tensor
    settled: list[Settled]
    plan: Plan
    known: list[Tensor]
    anchors: Tensor
    results: Tensor
    even: list[list[Tensor]]
    pictures: Tensor


def few_moves(height: int, width: int) -> Tensor:
    """Limits that are met within a test."""
    return torch.arange(height * width) % 4 + 3


@contextmanager
def ways(kernels: bool) -> Iterator[None]:
    """With kernels, or without; change at places is not what is compared here."""
    supported = moving.supported if kernels else lambda *_: False
    with (
        patch.object(visible_kernels, "supported", lambda *_: False),
        patch.object(moving, "supported", supported),
        patch.object(OpticalFlow, "__call__", lambda self, frames, _: known_flow(frames.device)),
        # pictures are too small for a flow that a graph can look for
        patch.object(dense, "searchable", lambda *_: True),
        patch.object(motion_module, "longest_moves", few_moves),
        patch.object(sparse, "longest_moves", few_moves),
    ):
        yield


def stream(pixels: Tensor, captures: bool = False) -> list[Block]:
    """Blocks of a stream that has its buffers for itself."""
    return list(blocks_of(pixels, own_workplaces(captures=captures)))


def blocks_of(pixels: Tensor, find: Find) -> Iterator[Block]:
    """As the engine does it, with tokens of random numbers."""
    drawn = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn).to(pixels.device)

    motion, anchors = Motion("full", VisibleChange(3.0), find), Anchors()
    results = Results(GRID, 2, 2.6 * random(CHANNELS, CHANNELS))
    shown, size = ShownPictures(TIMES, FRAMES, find), FRAMES * TIMES
    before = random(1, 12, 12), random(1, 12, 12)
    for number in range(BLOCKS):
        now = pixels[:, number * size : (number + 1) * size + TIMES]
        tokens = random(1, FRAMES, 12, 12)
        block = SourceBlock(tokens, before[1], before[1], GRID, now, anchors.pixels)
        decoded = random(1, size, 3, ROWS, COLUMNS).sigmoid()
        # results that follow their sources more or less
        own = (random(1, 24, 12) + tokens.flatten(1, 2)) / 2**0.5
        keep = torch.rand(1, FRAMES, 12, generator=drawn).to(pixels.device) < 0.1
        if not number:
            motion.restart(block)
            anchors.advance(now, torch.ones(1, *GRID_SHAPE, dtype=torch.bool, device=now.device))
            shown.compose(decoded, torch.ones(1, *GRID_SHAPE, dtype=torch.bool), True)
            continue
        staying = torch.arange(HEIGHT * WIDTH, device=pixels.device) % 11 == number
        staying = staying.view(1, HEIGHT, WIDTH)
        motion.enter()
        motion.begin(block, staying)
        if number < BLOCKS - 1:
            keep = motion.mask(1.0).flatten(2)
        settled, plan = motion.planned(keep)
        if number < BLOCKS - 1:
            assert not (settled[0].moved & staying[0]).any()
        known = [x.clone() for x in motion._videos[0].trace]  # type: ignore[union-attr]
        anchors.advance(now, keep.unflatten(2, (HEIGHT, WIDTH)))
        assert anchors.pixels is not None
        anchors.pixels = motion.anchored(settled, anchors.pixels)
        restored, even = results.restore(own, before, tokens.flatten(1, 2), keep, settled)
        before = restored[:, -12:], tokens[:, -1]
        by_place, moved = keep.unflatten(2, (HEIGHT, WIDTH)), MovedPictures(settled, even)
        pictures = shown.compose(decoded, by_place, False, moved=moved)
        settled = [_kept(x) for x in settled]
        yield Block(keep, settled, plan, known, anchors.pixels, restored, even, pictures)


GRID_SHAPE = FRAMES, HEIGHT, WIDTH


def _kept(settled: Settled) -> Settled:
    """Patches that moved, in either way, as they are now."""
    patches = [
        x if x.mask is None else Moved(x.index, x.numbers, x.places).chosen(x.mask)
        for x in settled.patches
    ]
    return settled._replace(patches=tuple(patches))


def near(mine: Tensor, other: Tensor, limit: float) -> None:
    assert mine.shape == other.shape
    torch.testing.assert_close(mine, other, atol=limit, rtol=1e-4)


def compare_block(mine: Block, other: Block) -> None:
    assert torch.equal(mine.keep, other.keep)
    assert mine.plan.counts == other.plan.counts
    assert (mine.plan.origin is None) == (other.plan.origin is None)
    if mine.plan.origin is not None and other.plan.origin is not None:
        assert torch.equal(mine.plan.origin, other.plan.origin)
    for ours, theirs in zip(mine.settled, other.settled, strict=True):
        for name in ("moved", "stuck", "origin", "first"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name
        near(ours.motion, theirs.motion, 1e-4)
        away = ours.moved | ours.stuck
        near(ours.stale[away], theirs.stale[away], 2e-2)
        for some, others in zip(ours.patches, theirs.patches, strict=True):
            for name in ("index", "numbers", "places"):
                near(getattr(some, name), getattr(others, name), 1e-3)
    for a, b, limit in zip(mine.known, other.known, (0, 1e-3, 0.1, 0, 0, 0), strict=True):
        near(a.float(), b.float(), limit)
    near(mine.anchors, other.anchors, 1e-3)
    near(mine.results, other.results, 1e-2)
    # half a level, where snapshots are in half precision
    near(mine.pictures, other.pictures, 2e-3)


class _Model:
    """What workplaces belong to."""


def compare_turns(pixels: Tensor, first: list[Block]) -> int:
    """Two streams that take turns against each alone, of which one is given; how many blocks."""
    model, clips, count = _Model(), [pixels, pixels.flip(-1)], 0

    def find(kind: str, key: Hashable) -> Workplace:
        return shared_workplace(model, kind, key, captures=True)

    with ways(True), ExitStack() as stack:
        alone = [first[:2], list(islice(blocks_of(clips[1], own_workplaces()), 2))]
        if not pixels.is_cuda:
            # nothing can be captured there: it is done again
            stack.enter_context(patch.object(graphs, "capture", lambda work: (work(), work)))
        captures = Graphs.captures
        running = [blocks_of(pixels, find) for pixels in clips]
        found: list[list[Block]] = [[], []]
        for number in (0, 1, 1, 0):
            found[number].append(next(running[number]))
        assert Graphs.captures - captures == 2  # what moved, and pictures: once for both
        for mine, other in zip(found, alone, strict=True):
            for ours, theirs in zip(mine, other, strict=True):
                compare_block(ours, theirs)
                assert torch.equal(ours.pictures, theirs.pictures)
                count += 1
    return count


def compare_moving(c: Any) -> None:
    """Blocks in a row: masks of its own, then one that is given."""
    levels = 300 * torch.rand(2, 3, 16, 48, device=c.device) - 20
    assert ((moving.brightness(levels, 1).int() - luma(levels).int()).abs() > 0).sum() <= 2
    pixels = clip(c.device)
    with ways(True):
        mine = stream(pixels)
    with ways(False):
        other = stream(pixels)
    for ours, theirs in zip(mine, other, strict=True):
        compare_block(ours, theirs)
        c.count += 1
    # nothing is compared that does not happen
    verdicts = [(x.keep.any(), x.settled[0].moved.any(), (~x.keep).any()) for x in mine[:2]]
    assert all(all(verdict) for verdict in verdicts)
    assert mine[-1].settled[0].stuck.any()
    assert any(x.plan.origin is not None for x in mine)
    if c.device == "cuda":
        with ways(True):
            for ours, theirs in zip(stream(pixels, captures=True), other, strict=True):
                compare_block(ours, theirs)
                c.count += 1
    c.count += compare_turns(pixels, mine)
