"""A slow fade: no two frames differ by what counts as a change, and yet nothing may go stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.fade import fade
from tests.test_control import Run, scene

from stillframe.controls import Controls, Gop, Refresh
from stillframe.methods.prune import InterFramePruning

STEP = 0.01
"""Latent standard deviations a frame: far below the short-term threshold."""
BLOCKS = 14


def staleness(control: Controls | None, tau2: float) -> list[float]:
    """How far the stalest place is behind its source at the end of each block."""
    run = Run(control, InterFramePruning(tau2=tau2))
    frames = 3 * BLOCKS
    latents = scene(0, frames, drift=0.0) + STEP * torch.arange(frames).view(1, 1, -1, 1, 1)
    behind = []
    for block in latents.split(3, 2):
        run.stream.edit_block(block)
        state: Any = run.stream._state
        behind.append(float((state.source - state.reference).abs().mean(2).max()))
    return behind


def test_without_refresh_and_bound_a_fade_is_never_seen() -> None:
    behind = staleness(None, 1e9)
    assert behind[-1] == pytest.approx(STEP * 3 * (BLOCKS - 1), abs=1e-4)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_refresh_keeps_up_within_its_blocks(blocks: int) -> None:
    behind = staleness(Controls(Refresh(blocks)), 1e9)
    most = STEP * 3 * (blocks - 1)
    assert max(behind) == pytest.approx(most, abs=1e-4)


def test_whole_blocks_and_the_bound_keep_up_as_well() -> None:
    assert max(staleness(Controls(Gop(4)), 1e9)) == pytest.approx(STEP * 9, abs=1e-4)
    bound = staleness(None, 0.1)
    # what is within the bound is shown from a source that is that old
    assert 0.05 < max(bound) < 0.1


def test_a_picture_that_stands_still_after_a_fade_is_that_picture() -> None:
    """Every place has been refreshed: it shows what it would if it had never faded."""
    blocks = 4
    run = Run(Controls(Refresh(blocks)), InterFramePruning(tau2=1e9))
    start = scene(0, 30, drift=0.0)
    fading = start + STEP * torch.arange(30).view(1, 1, -1, 1, 1)
    run.feed(torch.cat([fading, fading[:, :, -1:].expand(-1, -1, 3 * blocks, -1, -1)], 2))
    state: Any = run.stream._state
    assert torch.equal(state.reference, state.source)


def test_the_benchmark_fades_as_it_says() -> None:
    video = torch.cat(list(fade(1200, 24, 16)), 1)[0]
    level = video.mean((1, 2, 3)) * 255
    steps = level.diff()
    assert steps[:1190].abs() == pytest.approx(torch.full((1190,), 0.2), abs=1e-2)
    assert steps[1199:].abs().max() < 1e-3
    assert 0 <= float(video.min()) <= float(video.max()) <= 1
