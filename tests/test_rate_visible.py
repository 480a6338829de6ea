"""A rate chooses the tolerance, and says when the picture falls behind its source."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_hold import moving
from torch import Tensor

from stillframe.controls import Controls, Guard, Rate
from stillframe.controls.guard import Watch
from stillframe.controls.rate import BEHIND, RateController
from stillframe.detection.pixels import TOLERANCE
from stillframe.methods.prune import InterFramePruning


def drifting(frames: int, speed: float = 0.25) -> Tensor:
    """A textured picture that moves so many pixels a frame, everywhere, (1, T, 3, 64, 96)."""
    generator = torch.Generator().manual_seed(2)
    small = torch.rand(1, 3, 10, 20, generator=generator)
    large = torch.nn.functional.interpolate(small, (80, 160), mode="bilinear")[0]
    shifted = []
    for t in range(frames):
        whole, part = divmod(t * speed, 1)
        left, right = (large[:, 8:72, x : x + 96] for x in (int(whole), int(whole) + 1))
        shifted.append(left * (1 - part) + right * part)
    return torch.stack(shifted).unsqueeze(0)


def rate_of(stream: Any) -> Any:
    return stream.control_state.find(RateController)


def run(video: Tensor, control: Controls, **method: Any) -> Any:
    """The stream after the whole of a video."""
    stream = tiny.pipeline().stream("sepia", method=InterFramePruning(**method), control=control)
    for piece in video.split(12, 1):
        stream.push(piece)
    return stream


def test_a_starved_rate_says_that_the_picture_is_behind() -> None:
    stream = run(drifting(72), Controls(Rate(kept=0.05)))
    told = rate_of(stream).outcome()
    assert told.behind > 0
    assert told.stalest > BEHIND * TOLERANCE
    assert told.stalest == pytest.approx(stream.staleness.told()["max"])
    assert any("fell behind its source" in text for text in rate_of(stream).warnings())


@pytest.mark.parametrize("mode", ["constant", "capped"])
def test_a_rate_that_suffices_is_never_behind(mode: str) -> None:
    stream = run(moving(60), Controls(Rate(kept=0.9, mode=mode)))
    told = rate_of(stream).outcome()
    assert told.behind == 0
    assert stream.staleness.told()["max"] <= TOLERANCE
    assert not rate_of(stream).warnings()


def test_a_limit_is_kept_whatever_the_rate() -> None:
    """In tolerances: what has changed by more is computed, and the target is missed for it."""
    stream = run(drifting(72, 0.02), Controls(Rate(kept=0.05, limit=1.0)))
    assert stream.staleness.told()["max"] <= TOLERANCE * 1.01
    assert rate_of(stream).outcome().out_of_reach > 0


def test_a_rate_computes_what_changed_most() -> None:
    """Of a still picture with one thing that moves, the thing."""
    masks: list[Tensor] = []
    control = Controls(Rate(kept=0.3))
    stream = tiny.pipeline().stream(
        "sepia", control=control, on_block=lambda stats: masks.append(stats.keep)
    )
    for piece in moving(60).split(12, 1):
        stream.push(piece)
    for keep in masks[1:]:
        assert keep[0, :, 1:3, :2].float().mean() > 0.9


def test_a_guard_moves_the_tolerance() -> None:
    strict = run(drifting(96, 0.03), Controls(Guard(0.3, target=1e-6)))
    loose = run(drifting(96, 0.03), Controls(Guard(0.3, target=100.0)))
    assert strict.control_state.find(Watch).factor < 1 < loose.control_state.find(Watch).factor
    assert strict.staleness.told()["max"] <= TOLERANCE * 1.01
    assert loose.staleness.told()["p99"] > strict.staleness.told()["p99"]
