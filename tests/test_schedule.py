"""Noise schedules against the papers' numbers and the scheduler diffusers ships."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from stillframe.tokens.schedule import (
    check_sigmas,
    edit_sigmas,
    generate_sigmas,
    scheduler_shift,
    shift_sigma,
)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_shift_is_the_schedulers_own(shift: float) -> None:
    steps = [1.0, 0.75, 0.5, 0.25]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=steps)
    ours = torch.tensor([shift_sigma(u, shift) for u in steps])
    torch.testing.assert_close(ours, scheduler.sigmas[:-1])


def test_three_steps_at_strength_04_are_the_papers_schedule() -> None:
    expected = [5 * u / (1 + 4 * u) for u in (0.400, 0.350, 0.250)]
    assert edit_sigmas(0.4, 3, 5.0) == pytest.approx(expected)
    assert [round(s, 3) for s in expected] == [0.769, 0.729, 0.625]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("strength", [0.01, 0.4, 1.0])
def test_schedules_fall_and_are_valid(strength: float, steps: int) -> None:
    sigmas = edit_sigmas(strength, steps, 5.0)
    assert len(sigmas) == steps
    assert sigmas[0] == pytest.approx(shift_sigma(strength, 5.0))
    assert all(a > b for a, b in pairwise(sigmas))
    assert check_sigmas(sigmas) == sigmas


def test_more_strength_is_more_noise_at_every_step() -> None:
    weak, strong = edit_sigmas(0.3, 4, 5.0), edit_sigmas(0.6, 4, 5.0)
    assert all(a < b for a, b in zip(weak, strong, strict=True))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"strength must be in \(0, 1\], got {strength}"):
        edit_sigmas(strength, 3, 5.0)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 denoising step is needed, got {steps}"):
        edit_sigmas(0.4, steps, 5.0)


def test_four_generating_steps_are_the_schedulers_own() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    ours = torch.tensor(generate_sigmas(4, 5.0))
    torch.testing.assert_close(ours, scheduler.sigmas[:-1], rtol=0, atol=1e-7)
    assert [round(1000 * s, 1) for s in ours.tolist()] == [1000.0, 937.5, 833.3, 625.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 1.1, 3.0, 4.7, 5.0, 7.3, 8.0])
def test_generating_starts_at_exactly_1_and_falls(shift: float, steps: int) -> None:
    sigmas = generate_sigmas(steps, shift)
    assert len(sigmas) == steps
    assert sigmas[0] == 1
    assert sigmas[-1] == pytest.approx(shift_sigma(1 / steps, shift))
    assert check_sigmas(sigmas) == sigmas


def test_generating_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1 denoising step is needed, got 0"):
        generate_sigmas(0, 5.0)


def test_the_shift_is_found_under_both_names() -> None:
    euler = FlowMatchEulerDiscreteScheduler(shift=3.5)
    unipc = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5
    )
    assert [scheduler_shift(s.config) for s in (euler, unipc)] == [3.5, 2.5]
    assert scheduler_shift({}) == 1.0


@pytest.mark.parametrize(
    "sigmas",
    [[], [0.0], [0.5, 0.0], [1.1], [0.5, 0.5], [0.4, 0.6], [float("nan")], [0.5, float("nan")]],
)
def test_schedules_that_do_not_fall_within_0_and_1_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must fall strictly within \(0, 1\], got \["):
        check_sigmas(sigmas)


def test_check_keeps_a_valid_schedule() -> None:
    assert check_sigmas([1, 0.5]) == (1.0, 0.5)
