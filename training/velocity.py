"""The loss of the transformer's training: velocities at noise levels that inference meets.

Two fifths of the blocks are pure noise, as in a first step. Where the model's own prediction is at
hand, it is the context, and noise on it is what some of the blocks begin with, as in a second step:
true latents with noise lack the faults that a second step is there to mend.

This file knows nothing of data, captions or optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.teacher_forcing import TeacherForcing

__all__ = [
    "BLOCK",
    "Batch",
    "OwnPrediction",
    "channel_weights",
    "noise_levels",
    "own_prediction",
    "second_step",
    "velocity_loss",
    "velocity_to",
]

BLOCK = 3
"""Latent frames a block, S."""

_SHIFT = 3.0


@dataclass
class Batch:
    """Latents (B, C, F, h, w) of targets and sources, and the style number of each sample."""

    target: Tensor
    source: Tensor
    styles: list[int]


def noise_levels(batch: int, blocks: int, device: torch.device, certain: float = 0.4) -> Tensor:
    """Noise levels (B, nb): uniform, shifted by 3 towards noise; a share of ``certain`` is 1."""
    u = torch.rand(batch, blocks, device=device)
    sigma = _SHIFT * u / (1 + (_SHIFT - 1) * u)
    return torch.where(torch.rand_like(u) < certain, 1.0, sigma)


def _by_frame(values: Tensor) -> Tensor:
    """Blocks' values (B, nb), spread over (B, 1, F, 1, 1)."""
    return values.repeat_interleave(BLOCK, 1)[:, None, :, None, None]


def _noised(x0: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, the noise, and sigma spread over (B, 1, F, 1, 1)."""
    spread, noise = _by_frame(sigma), torch.randn_like(x0)
    return x0 + spread * (noise - x0), noise, spread


class OwnPrediction(NamedTuple):
    """What the model itself makes of a batch in one step.

    ``latents`` (B, C, F, h, w); ``blind`` (B, nb), of which blocks nothing but noise was given.
    """

    latents: Tensor
    blind: Tensor


@torch.no_grad()
def own_prediction(predict: TeacherForcing, batch: Batch, text: Tensor, gap: int) -> OwnPrediction:
    """One step of the model on the batch, from true context."""
    count, _, frames, _, _ = batch.target.shape
    sigma = noise_levels(count, frames // BLOCK, batch.target.device, certain=0.7)
    noisy, _, spread = _noised(batch.target, sigma)
    velocity = predict(noisy, batch.target, batch.source, sigma, text, gap)
    return OwnPrediction(noisy - spread * velocity.float(), sigma == 1)


def channel_weights(sensitivity: Tensor) -> Tensor:
    """Weights (C, 1, 1, 1) of channels in the loss, of mean 1; none goes unlearnt, since what is
    made is also what the next block sees."""
    return (0.2 + 0.8 * sensitivity).view(-1, 1, 1, 1)


def second_step(own: OwnPrediction, sigma: Tensor, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Make a share of the blocks a second step of inference: noise on what the first one made.

    What is given there has the model's own faults, which true latents with noise lack.

    Returns:
        the blocks (B, nb) that are second steps, and noise levels (B, nb): theirs are .3 to .5, and
        the others' are as they were.
    """
    chosen = own.blind & (torch.rand_like(sigma) < share)
    return chosen, torch.where(chosen, 0.3 + 0.2 * torch.rand_like(sigma), sigma)


def velocity_to(target: Tensor, begun: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Velocity that leads from ``begun``, noised to ``sigma``, to ``target`` in one step.

    It is noise - target where ``begun`` is the target; elsewhere ``sigma`` must be .1 or more.
    """
    return noise - target + (1 / sigma.clamp_min(0.1) - 1) * (begun - target)


def velocity_loss(
    predict: TeacherForcing,
    batch: Batch,
    own: OwnPrediction | None,
    text: Tensor,
    gap: int,
    channels: Tensor,
) -> Tensor:
    """Mean squared error of the velocity.

    Clean context is what the model made where that is given (``own``), otherwise the target, and
    gets a little noise. ``channels`` are weights, see `channel_weights`.
    """
    count, _, frames, _, _ = batch.target.shape
    context = batch.target if own is None else own.latents
    strength = 0.1 * torch.rand(count, 1, 1, 1, 1, device=context.device)
    context = context + strength * torch.randn_like(context)
    sigma, begun = noise_levels(count, frames // BLOCK, context.device), batch.target
    if own is not None:
        chosen, sigma = second_step(own, sigma)
        begun = torch.where(_by_frame(chosen), own.latents, batch.target)
    noisy, noise, spread = _noised(begun, sigma)
    velocity = predict(noisy, context, batch.source, sigma, text, gap)
    wanted = velocity_to(batch.target, begun, noise, spread)
    return (channels * (velocity.float() - wanted).square()).mean()
