"""Streams on a simulated clock: what a block takes follows from what was computed in it."""

from __future__ import annotations

import random
from statistics import median

import torch
from tests.test_control import Run, scene
from torch import Tensor

from stillframe.controls import Control, Controls, Rate, Timing
from stillframe.controls.rate import RateController
from stillframe.methods.prune import InterFramePruning

__all__ = ["FRAMES", "PRUNE", "Simulated", "controller", "moving", "run", "seconds", "windows"]

FRAMES = 12
PRUNE = InterFramePruning(detector="latent")


class Simulated:
    """A machine that takes ``fixed + slope * share`` seconds a block, with noise and drift.

    Args:
        fixed, slope: at first; a whole block takes 1 s.
        noise: standard deviation, share of a block's time.
        drift: by how much of itself a block's time grows per block.
        hiccups: blocks that take five times as long.
    """

    def __init__(
        self,
        fixed: float = 0.2,
        slope: float = 0.8,
        noise: float = 0.0,
        drift: float = 0.0,
        hiccups: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.fixed, self.slope, self.noise, self.drift = fixed, slope, noise, drift
        self.hiccups = hiccups
        self._rng = random.Random(seed)
        self._block = -1

    def __call__(self, timing: Timing) -> Timing:
        self._block += 1
        seconds = (self.fixed + self.slope * timing.share) * (1 + self.drift * self._block)
        seconds *= max(1 + self.noise * self._rng.gauss(0, 1), 0.2)
        return timing._replace(seconds=seconds * (5 if self._block in self.hiccups else 1))


def moving(blocks: int, seed: int = 0) -> Tensor:
    """Latents (1, C, F, h, w) of a picture that drifts a little, and moves at random places."""
    frames = 3 * blocks
    latents = scene(seed, frames, drift=0.05)
    generator = torch.Generator().manual_seed(seed + 100)
    for t in range(1, frames):
        places = torch.rand(latents.shape[-2:], generator=generator) < 0.3
        push = torch.randn(latents.shape[:2] + latents.shape[-2:], generator=generator)
        latents[:, :, t:] += (0.4 * push * places).unsqueeze(2)
    return latents


def controller(made: Run) -> RateController:
    assert made.stream.control_state is not None
    found = made.stream.control_state.find(RateController)
    assert found is not None
    return found


def run(rate: Rate, latents: Tensor, *controls: Control) -> Run:
    """A stream of latents at a rate."""
    made = Run(Controls(rate, *controls), PRUNE)
    made.feed(latents)
    return made


def seconds(made: Run) -> list[float]:
    """Of every block."""
    return [timing.seconds for timing in controller(made).timings]


def windows(times: list[float], length: float) -> float:
    """Median frames a second over windows of so many seconds, one beginning at every block."""
    found = []
    for start in range(len(times)):
        spent, blocks = 0.0, 0
        while spent < length and start + blocks < len(times):
            spent += times[start + blocks]
            blocks += 1
        if spent >= length:
            found.append(FRAMES * blocks / spent)
    return median(found)
