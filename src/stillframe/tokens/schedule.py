"""Noise schedules: which sigma each denoising pass runs at.

Flow matching: ``x_sigma = (1 - sigma) x0 + sigma eps``; the model predicts ``v = eps - x0``.
Between passes *fresh* noise is added to the predicted ``x0`` (Self Forcing), so a schedule is just
a falling list of sigmas. Some models are told another level than they are denoised at; a `Pass` has
both. It does not know the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from stillframe.untrusted.numbers import check_number

__all__ = [
    "Pass",
    "check_sigmas",
    "edit_sigmas",
    "generate_sigmas",
    "nearest_sigma",
    "scheduler_shift",
    "shift_sigma",
]

# a pass at each of a model's timesteps
_MOST_STEPS = 1000
# the papers' editing schedule, u = .400, .350, .250, relative to its first entry
_EDIT_CURVE = (1.0, 0.875, 0.625)


class Pass(NamedTuple):
    """The noise levels of one denoising pass; mostly they are one.

    Attributes:
        sigma: at which the prediction is read: ``x0 = x - sigma v``.
        told: of which the model is told, its timestep / timestep_scale.
        noise: that what goes in is mixed at: ``x = (1 - noise) x0 + noise eps``.
    """

    sigma: float
    told: float
    noise: float


def shift_sigma(u: float, shift: float) -> float:
    """Warp ``u`` in [0, 1] towards high noise: ``shift u / (1 + (shift - 1) u)``."""
    return shift * u / (1 + (shift - 1) * u)


def nearest_sigma(told: float, shift: float, steps: int = _MOST_STEPS) -> float:
    """The noise level of a scheduler's grid that is nearest to what the model is told.

    CausVid's scheduler, and those made after it, look a timestep up in a grid of ``steps`` levels,
    evenly spaced from 1 down to 1 / steps and then shifted: at shift 8 timestep 757 has .756757.

    Args:
        told: timestep / number of train timesteps, 0 to 1.
        shift: the scheduler's shift.
        steps: levels of the grid.
    """
    grid = (shift_sigma((steps - i) / steps, shift) for i in range(steps))
    return min(grid, key=lambda sigma: abs(sigma - told))


def scheduler_shift(config: Mapping[str, Any]) -> float:
    """The shift in a diffusers scheduler's configuration; 1 where there is none.

    Wan's own folders come with a UniPC scheduler, which calls it ``flow_shift``.
    """
    return float(config.get("shift", config.get("flow_shift", 1.0)))


def edit_sigmas(strength: float, steps: int, shift: float) -> tuple[float, ...]:
    """The sigmas of an edit.

    Args:
        strength: u of the first pass, in (0, 1]: how much of the source is replaced by noise.
        steps: number of denoising passes, at least 1 (the context pass is not counted).
        shift: the scheduler's shift.

    Returns:
        ``steps`` falling sigmas. Three steps at strength 0.4 and shift 5 are the papers' schedule,
        .769, .729, .625; other counts interpolate its curve.

    Raises:
        ValueError: if strength or steps is out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if steps < 1:
        raise ValueError(f"at least 1 denoising step is needed, got {steps}")
    check_number("the denoising steps", steps, 1, _MOST_STEPS, whole=True)
    curve = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(_EDIT_CURVE)), _EDIT_CURVE)
    return tuple(shift_sigma(strength * float(c), shift) for c in curve)


def generate_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """The sigmas of text-to-video: u evenly spaced from 1 down to 1 / steps, warped.

    Four steps at shift 5 are Self Forcing's schedule, 1, .9375, .8333, .625.

    Raises:
        ValueError: if there is no step.
    """
    if steps < 1:
        raise ValueError(f"at least 1 denoising step is needed, got {steps}")
    check_number("the denoising steps", steps, 1, _MOST_STEPS, whole=True)
    return tuple(shift_sigma((steps - i) / steps, shift) for i in range(steps))


def check_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Validate an explicit schedule: one or more falling sigmas in (0, 1].

    Raises:
        ValueError: otherwise.
    """
    if len(sigmas) > _MOST_STEPS:
        raise ValueError(f"a schedule has at most {_MOST_STEPS} sigmas, got {len(sigmas)}")
    try:
        values = tuple(map(float, sigmas))
    except OverflowError:
        raise ValueError("sigmas must fall strictly within (0, 1], got larger numbers") from None
    falling = all(a > b for a, b in pairwise(values))
    if not values or not falling or not values[0] <= 1 or not values[-1] > 0:
        raise ValueError(f"sigmas must fall strictly within (0, 1], got {list(values)}")
    return values
