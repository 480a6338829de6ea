"""The transformer's loss and its optimiser against second derivations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.muon import Muon, Together, orthogonal
from training.velocity import (
    BLOCK,
    Batch,
    OwnPrediction,
    noise_levels,
    second_step,
    velocity_loss,
    velocity_to,
)

SHAPE = (2, 4, 3 * BLOCK, 4, 6)  # B, C, F, h, w


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (24, 8), (8, 24), (8, 8))]


def train(optimiser: Any, parameters: list[nn.Parameter], steps: int = 4) -> None:
    torch.manual_seed(2)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()


def test_all_matrices_of_a_shape_at_once_are_one_after_the_other() -> None:
    together, alone = matrices(), matrices()
    train(Muon(together, lr=0.01, weight_decay=0.02), together)
    torchs = torch.optim.Muon(alone, lr=0.01, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    train(torchs, alone)
    for ours, theirs, start in zip(together, alone, matrices(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (ours - start).abs().mean() > 0.003


def test_an_update_is_about_orthogonal_however_small_its_rarest_direction() -> None:
    left, right = (torch.linalg.qr(torch.randn(3, 16, 16)).Q for _ in range(2))
    sizes = torch.logspace(0, -2, 16)
    found = torch.linalg.svdvals(orthogonal(left * sizes @ right).float())
    assert found.min() > 0.4
    assert found.max() < 1.3


def test_optimisers_together_go_on_where_they_stopped() -> None:
    def build(parameters: list[nn.Parameter]) -> Together:
        return Together([Muon(parameters[:2]), torch.optim.AdamW(parameters[2:])])

    whole = matrices()
    optimiser = build(whole)
    train(optimiser, whole)
    halves = [nn.Parameter(p.detach().clone()) for p in whole]
    resumed = build(halves)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    train(optimiser, whole, 2)
    train(resumed, halves, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    optimiser.zero_grad()
    assert all(p.grad is None for p in whole)


def test_a_velocity_leads_to_the_target_from_whatever_is_noised() -> None:
    torch.manual_seed(0)
    target, begun, noise = torch.randn(3, *SHAPE).double()
    for sigma in (0.3, 0.5, 1.0):
        level = torch.tensor(sigma).double()
        noisy = begun + level * (noise - begun)
        arrived = noisy - level * velocity_to(target, begun, noise, level)
        torch.testing.assert_close(arrived, target)
    tiny = torch.tensor(1e-6)
    torch.testing.assert_close(velocity_to(target, target, noise, tiny), noise - target)


def test_only_what_was_made_of_noise_alone_becomes_a_second_step() -> None:
    torch.manual_seed(0)
    sigma = noise_levels(500, 3, torch.device("cpu"), certain=0.7)
    own = OwnPrediction(torch.zeros(()), sigma == 1)
    drawn = noise_levels(500, 3, torch.device("cpu"))
    chosen, levels = second_step(own, drawn)
    assert not (chosen & ~own.blind).any()
    assert torch.equal(levels[~chosen], drawn[~chosen])
    assert levels[chosen].min() >= 0.3
    assert levels[chosen].max() <= 0.5
    assert 0.4 < chosen.sum() / own.blind.sum() < 0.6
    assert 0.65 < own.blind.float().mean() < 0.75


@pytest.mark.parametrize("given", [False, True])
def test_the_loss_is_nothing_for_a_model_that_knows_the_target(given: bool) -> None:
    torch.manual_seed(0)
    target, source, latents = torch.randn(3, *SHAPE)
    batch = Batch(target, source, [0, 1])
    own = OwnPrediction(latents, torch.ones(2, 3, dtype=torch.bool)) if given else None
    seen: list[Tensor] = []

    def knows(
        noisy: Tensor, clean: Tensor, source: Tensor, sigma: Tensor, text: Tensor, gap: int
    ) -> Tensor:
        seen.append(clean)
        spread = sigma.repeat_interleave(BLOCK, 1)[:, None, :, None, None]
        return (noisy - target) / spread

    predict: Any = knows
    loss = velocity_loss(predict, batch, own, torch.zeros(2, 1, 1), 0, torch.ones(4, 1, 1, 1))
    assert loss < 1e-8
    nearest = latents if given else target
    assert (seen[0] - nearest).abs().max() < 0.1 * 6
    assert (seen[0] - nearest).abs().max() > 0


def test_the_loss_is_that_of_the_true_velocity_weighted_by_channel() -> None:
    torch.manual_seed(0)
    target = torch.randn(SHAPE)
    batch = Batch(target, target, [0, 1])

    def wrong(
        noisy: Tensor, clean: Tensor, source: Tensor, sigma: Tensor, text: Tensor, gap: int
    ) -> Tensor:
        spread = sigma.repeat_interleave(BLOCK, 1)[:, None, :, None, None]
        off = torch.arange(4.0).view(1, 4, 1, 1, 1)
        return (noisy - target) / spread + off

    predict: Any = wrong
    weights = torch.tensor([1.0, 2.0, 0.5, 0.1]).view(4, 1, 1, 1)
    loss = velocity_loss(predict, batch, None, torch.zeros(2, 1, 1), 0, weights)
    torch.testing.assert_close(
        loss, torch.tensor((0 + 2 + 0.5 * 4 + 0.1 * 9) / 4), rtol=1e-4, atol=0
    )
