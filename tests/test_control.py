"""Controls through the engine: what they guarantee, and that without any nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_engine import H, Recorder, W, embeds
from tests.tiny import clip
from torch import Tensor

from stillframe.backbones.wan import WanDenoiser
from stillframe.controls import Box, Controls, Cuts, Gop, Painting, Refresh, Region, SourceFacts
from stillframe.controls.refresh import Refreshing
from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.grid import Grid

STILL = InterFramePruning(tau1=9.0, tau2=9.0)
"""Prunes everything that it may."""

CUTS = Cuts(minimum=0.12)
"""For latents that are not normalised, as those of random weights."""


class Run:
    """A stream that is fed latents, and what became of them."""

    def __init__(self, control: Controls | None, method: Any = STILL, batch: int = 1) -> None:
        self.blocks: list[BlockStats] = []
        self.coder = Recorder(tiny.autoencoder())
        denoiser = WanDenoiser(tiny.transformer())
        self.stream = EditStream(
            denoiser,
            self.coder,
            denoiser.text(embeds(batch)),
            method,
            StreamSettings((0.7,)),
            torch.Generator().manual_seed(0),
            self.blocks.append,
            control,
        )

    def feed(self, latents: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) in blocks of three; the resulting latents."""
        for block in latents.split(3, 2):
            self.stream.edit_block(block)
        return torch.cat(self.coder.result, 2)

    @property
    def shares(self) -> list[float]:
        return [block.kept_share for block in self.blocks]


def scene(seed: int, frames: int, drift: float = 0.01) -> Tensor:
    """Latents (1, C, F, H/8, W/8) of unit variance that hardly change."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, tiny.CHANNELS, 1, H // 8, W // 8)
    still = torch.randn(shape, generator=generator)
    return still + drift * torch.randn((*shape[:2], frames, *shape[3:]), generator=generator)


def columns(run: Run) -> Tensor:
    """(blocks, N) bool: the places that were recomputed in each block."""
    return torch.stack([block.keep[0].any(0).flatten() for block in run.blocks])


@pytest.mark.parametrize("method", [InterFramePruning(), find_method("tome")()])
def test_a_control_that_asks_for_nothing_changes_nothing(method: Any) -> None:
    latents = scene(0, 9, drift=0.2)
    plain, controlled = Run(None, method), Run(Controls(), method)
    assert torch.equal(plain.feed(latents), controlled.feed(latents))
    assert plain.shares == controlled.shares
    assert plain.stream.control_state is None


def test_a_group_of_pictures_makes_blocks_whole_and_the_others_not() -> None:
    run = Run(Controls(Gop(3)))
    run.feed(scene(0, 24))
    assert run.shares == [1, 0, 0, 1, 0, 0, 1, 0]
    assert run.stream.control_state is not None
    assert run.stream.control_state.report()["whole_blocks"] == 2
    every = Run(Controls(Gop(1)))
    full = Run(None, find_method("full")())
    assert torch.equal(every.feed(scene(0, 12)), full.feed(scene(0, 12)))


def test_a_group_begins_anew_with_whatever_block_was_whole() -> None:
    run = Run(Controls(Gop(3)))
    latents = scene(0, 24)
    run.feed(latents[:, :, :6])
    run.stream.set_text(WanDenoiser(tiny.transformer()).text(embeds(seed=6)))
    run.feed(latents[:, :, 6:])
    assert run.shares == [1, 0, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("blocks", [1, 4, 5, 40])
def test_nothing_gets_older_than_the_refresh_and_its_cost_is_even(blocks: int) -> None:
    run = Run(Controls(Refresh(blocks)))
    run.feed(scene(0, 3 * (blocks + 3)))
    done = columns(run)
    n = done.shape[1]
    assert all(bool(done[t : t + blocks].any(0).all()) for t in range(len(done) - blocks + 1))
    assert set(done[1:].sum(1).tolist()) <= {n // blocks, -(-n // blocks)}
    assert run.stream.control_state is not None
    report = run.stream.control_state.report()
    # the method prunes all, so what was computed after the first block was computed for this
    assert report["refreshed_tokens"] == sum(block.kept for block in run.blocks[1:])
    assert report["oldest_blocks"] == blocks - 1


def test_what_moved_anyway_is_young_and_costs_the_refresh_nothing() -> None:
    always = Region(Box(0, 0, 0.5, 1))
    moving, still = (Run(Controls(Refresh(4), *region)) for region in ((always,), ()))
    for run in (moving, still):
        run.feed(scene(0, 24))
    places = always.places(Grid(3, H // 16, W // 16)).flatten()
    state: Any = moving.stream.control_state
    assert not state.find(Refreshing).age[:, places].any()
    assert state.find(Refreshing).age[:, ~places].any()
    assert torch.equal(columns(moving)[1:], columns(still)[1:] | places)
    due = columns(still)[1:, ~places].sum() * 3
    assert state.report()["refreshed_tokens"] == due


def test_regions_are_recomputed_always_or_never() -> None:
    half = Box(0, 0, 0.5, 1)
    grid = Grid(3, H // 16, W // 16)
    left = torch.arange(grid.width).expand(grid.height, -1) < grid.width // 2
    for invert, wanted in ((False, left), (True, ~left)):
        always, never = (
            Run(Controls(Region(half, mode, invert), *refresh), method)
            for mode, refresh, method in (
                ("always", (), STILL),
                ("never", (Refresh(2),), InterFramePruning(tau1=0.0)),
            )
        )
        for run in (always, never):
            run.feed(scene(0, 9))
            assert run.shares[0] == 1
        assert all(torch.equal(b.keep[0], wanted.expand(3, -1, -1)) for b in always.blocks[1:])
        assert all(torch.equal(b.keep[0], ~wanted.expand(3, -1, -1)) for b in never.blocks[1:])
    state: Any = never.stream.control_state
    told = state.report()
    assert (told["refreshed_tokens"], told["oldest_blocks"]) == (0, 0), (
        "a place that is never recomputed is never due"
    )


def test_a_patch_half_in_a_region_is_recomputed_when_in_doubt() -> None:
    grid = Grid(1, 4, 4)
    shapes = (
        Box(0.25, 0.25, 0.3, 0.3),
        Box(25, 25, 30, 30).in_shares(100, 100),
        Painting(torch.nn.functional.pad(torch.ones(30, 30, dtype=torch.bool), (25, 45, 25, 45))),
    )
    for shape in shapes:
        assert Region(shape, "always").places(grid).nonzero().tolist() == [
            [1, 1], [1, 2], [2, 1], [2, 2]
        ]  # fmt: skip
        assert Region(shape, "never").places(grid).nonzero().tolist() == [[1, 1]]
        outside = Region(shape, "always", invert=True).places(grid)
        assert torch.equal(outside, ~Region(shape, "never").places(grid))


def test_padding_belongs_to_the_patch_at_the_edge() -> None:
    facts = SourceFacts(56, 40, (3.5 / 4, 2.5 / 3))
    # a picture of 3.5 by 2.5 patches; its right half begins in the second patch
    region = Region(Box(0.5, 0, 0.5, 1), "never").fitted(facts)
    assert region.places(Grid(1, 3, 4)).tolist() == [[False, False, True, True]] * 3
    whole = Region(Box(0, 0, 56, 40), "never").fitted(facts)
    assert whole.places(Grid(1, 3, 4)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gop(0), "every 1 or more blocks, got 0"),
        (lambda: Refresh(0), "1 or more blocks, got 0"),
        (lambda: Cuts(minimum=0), "got 0, 1.5 and 3"),
        (lambda: Cuts(window=0), "1 or more frames, got 0"),
        (lambda: Box(0, 0, 0, 1), "sides above 0, got 0,0,0,1"),
        (lambda: Box(float("nan"), 0, 1, 1), "0 or more"),
        (lambda: Box(200, 0, 10, 10).in_shares(100, 100), "200,0 on lies outside of 100x100"),
        (lambda: Region(Box(0, 0, 1, 1), "often"), "'always', 'never' or 'only', got 'often'"),
        (lambda: Region(Box(0, 0, 9, 9)).places(Grid(1, 2, 2)), "needs the size of the source"),
        (lambda: Painting(torch.zeros(2, 2)), "float32"),
        (
            lambda: Run(Controls(Region(Box(0, 0, 1, 1), "never")), find_method("full")()),
            "'full' computes everything",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_stream_is_a_file_bit_for_bit_under_all_controls() -> None:
    video = torch.cat([clip(40), clip(33, seed=3)], 1)
    control = Controls(Gop(5), Refresh(4), CUTS, Region(Box(0.5, 0.5, 0.3, 0.3)))
    whole, parts = (Run(control, InterFramePruning()) for _ in range(2))
    at_once = [whole.stream.push(video), whole.stream.flush()]
    pieces = [parts.stream.push(piece) for piece in video.split(5, 1)] + [parts.stream.flush()]
    joined = [torch.cat([x for x in out if x is not None], 1) for out in (at_once, pieces)]
    assert joined[0].shape[1] == 73
    assert torch.equal(*joined)
    states = [run.stream.control_state for run in (whole, parts)]
    assert states[0] is not None
    assert states[1] is not None
    report = states[0].report()
    assert report == states[1].report()
    assert report["cut_frames"] == [40]
    assert report["refreshed_tokens"]
