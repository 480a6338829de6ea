"""Train the tiny video autoencoder of the bundled model.

Half of each batch is source footage and half one random style of it. What the loss asks for, beyond
a small error: edges where they belong (gradients at three scales), faithful shadows (dark areas
weigh more), no grid (the part of the error that repeats with the 8-pixel patch is punished alone),
latents of unit size that stand noise, and latents that ignore the noise of a camera sensor, because
the engine recomputes a patch whose latents move.

This file knows nothing of text or of the transformer.

Run as ``python -m training.autoencoder --clips DIR --state DIR --seconds 500``; ``--total`` sets
the length of the whole schedule where it is cut into chunks.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.data import load_clips, random_crops, read_clips, weights
from training.filters import FILTERS, apply_style
from training.linear_start import LATENT_STD, build_linear, start_linear
from training.loop import (
    Average,
    Budget,
    check_finite,
    learning_rate,
    load_checkpoint,
    say,
    write_checkpoint,
)

__all__ = [
    "Losses",
    "autoencoder_losses",
    "edge_error",
    "grid_error",
    "latent_statistics",
]

STYLES = tuple(name for name in FILTERS if name != "photo")


def grid_error(error: Tensor, patch: int = 8) -> Tensor:
    """The part of ``error`` (B, T, 3, H, W) that repeats from patch to patch, in absolute value.

    Means over neighbourhoods of 4x4 patches and all frames, patch position by patch position, with
    the neighbourhood's own mean taken out: zero for any error that has no period of ``patch``.
    """
    cells = error.mean(1).unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # B 3 h p w p
    cells = cells.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # B 3pp h w
    near = F.avg_pool2d(cells, 4, 2).unflatten(1, (3, patch * patch))
    return (near - near.mean(2, keepdim=True)).abs().mean()


def edge_error(error: Tensor) -> Tensor:
    """Mean absolute gradient of the error, at scales 1, 2 and 4."""
    flat = error.flatten(0, 1)
    total = error.new_zeros(())
    for _ in range(3):
        total = total + (flat[..., 1:] - flat[..., :-1]).abs().mean()
        total = total + (flat[..., 1:, :] - flat[..., :-1, :]).abs().mean()
        flat = F.avg_pool2d(flat, 2)
    return total / 3


@dataclass
class Losses:
    """The terms of one step, and the weighted sum that is minimised."""

    total: Tensor
    squared: Tensor
    latent: Tensor
    drift: Tensor
    grid: Tensor


def autoencoder_losses(
    model: TinyVideoAutoencoder,
    target: Tensor,
    noise: Tensor,
    latent_noise: float = 0.1,
    size_weight: float = 0.01,
) -> Losses:
    """Loss of one batch.

    Args:
        model: the autoencoder.
        target: (B, T, 3, H, W) in [0, 1].
        noise: sensor noise to add to the first samples' input, (n, T, 3, H, W), n <= B.
        latent_noise: largest standard deviation of the noise added to latents before decoding.
        size_weight: how firmly latents are held to unit size.
    """
    count = len(noise)
    seen = torch.cat([target[:count] + noise, target])
    both = model.encode_raw(seen).float()
    noisy, clean = both[:count], both[count:]
    drift = (noisy - clean[:count]).abs().mean() if count else both.new_zeros(())
    latents = torch.cat([noisy, clean[count:]])
    strength = latent_noise * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
    decoded = model.decode_raw(latents + strength * torch.randn_like(latents)).float()
    error = decoded - target
    luma = target.mean(2, keepdim=True)
    emphasis = 1 + 1.5 * torch.exp(-luma / 0.12)
    # in the logarithm: a small batch may be far off without throwing the weights about
    size = (clean.square().mean((0, 1, 3, 4)) + 1e-3).log().square().mean()
    squared = error.square()
    grid = grid_error(error)
    total = (
        (emphasis * (squared + 1e-6).sqrt()).mean()
        + 12 * (emphasis * squared).mean()
        + 0.4 * edge_error(error)
        + 1.0 * grid
        + size_weight * size
        + 0.2 * drift
    )
    return Losses(total, squared.mean().detach(), size.detach(), drift.detach(), grid.detach())


def _batch(
    clips: Sequence[Tensor], odds: Sequence[float], shape: tuple[int, int, int], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Targets, half of them restyled, and sensor noise for every other one of both halves."""
    target = random_crops(clips, odds, shape, rng)
    half = shape[0] // 2
    restyled = apply_style(rng.choice(STYLES), target[half:].flatten(0, 1))
    target = torch.cat([target[:half], restyled.view_as(target[half:])])
    # interleave, so that the noisy first half holds source and styled samples alike
    target = target.unflatten(0, (2, half)).transpose(0, 1).flatten(0, 1)
    level = rng.uniform(1, 3) / 255
    return target, level * torch.randn_like(target[:half])


@torch.no_grad()
def latent_statistics(
    model: TinyVideoAutoencoder, clips: Sequence[Tensor], rng: random.Random, samples: int = 96
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over source and restyled clips."""
    moments: list[Tensor] = []
    torch.backends.cudnn.benchmark = False  # clips come in many sizes
    for i in range(samples):
        clip = rng.choice(clips)[:32]
        height, width = (side // 8 * 8 for side in clip.shape[-2:])
        frames = clip[..., :height, :width].float() / 255
        if i % 2:
            frames = apply_style(rng.choice(STYLES), frames)
        latents = model.encode_raw(frames[None])[0].float()
        moments.append(torch.stack([latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))]))
    mean, square = torch.stack(moments).double().mean(0)
    return mean.tolist(), (square - mean**2).clamp_min(1e-6).sqrt().tolist()


def export(model: TinyVideoAutoencoder, clips: Sequence[Tensor], folder: Path) -> None:
    """Write ``model`` (float16) with its latent statistics to ``folder``."""
    mean, std = latent_statistics(model, clips, random.Random(0))
    model.register_to_config(
        latents_mean=[round(x, 5) for x in mean], latents_std=[round(x, 5) for x in std]
    )
    say(f"latents: mean {min(mean):.2f}..{max(mean):.2f}, std {min(std):.2f}..{max(std):.2f}")
    half = TinyVideoAutoencoder.from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the tiny video autoencoder.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--state", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, help="folder for the trained weights")
    parser.add_argument("--seconds", type=float, required=True, help="training time of this chunk")
    parser.add_argument("--total", type=float, help="of the whole schedule, if longer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=192, help="crop side in pixels")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--limit", type=int, help="use only so many clips")
    return parser.parse_args()


class Trainer:
    """The state of a training run: model, average, optimiser, data and time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        listed = read_clips()[: options.limit]
        self.clips, self.odds = load_clips(options.clips, listed, self.device), weights(listed)
        say(f"{len(self.clips)} clips, {sum(len(clip) for clip in self.clips)} frames")
        torch.manual_seed(0)
        self.model = self._start().to(self.device, memory_format=torch.channels_last)
        self.average = Average(self.model)
        self.peak = options.learning_rate
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            betas=(0.9, 0.99),
            weight_decay=1e-5,
            fused=self.device.type == "cuda",
        )
        self.path = options.state / "autoencoder.pt"
        self.step, spent = 0, 0.0
        if (state := load_checkpoint(self.path, self.device)) is not None:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, spent = state["step"], state["spent"]
            torch.manual_seed(self.step)
        self.rng = random.Random(self.step)
        side = options.side
        # mostly short and wide, sometimes long and small: equal cost, and memory blocks see depth
        self.shapes = [(options.batch, 16, side), (options.batch, 32, side * 3 // 4 // 8 * 8)]
        self.budget = Budget(options.seconds, options.total or options.seconds, spent)

    def _start(self) -> TinyVideoAutoencoder:
        """The best linear transform for some of the clips, and some of their styles."""
        rng, model = random.Random(0), build_linear()
        batches = [random_crops(self.clips, self.odds, (4, 8, 128), rng).cpu() for _ in range(16)]
        styled = [apply_style(rng.choice(STYLES), clip) for clip in batches[0]]
        start_linear(model, [*(clip for batch in batches for clip in batch), *styled])
        return model

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.budget.spent,
        }
        write_checkpoint(state, self.path)

    def train_step(self) -> tuple[Losses, Tensor]:
        """One optimiser step; returns losses and gradient norm, still on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.budget.progress, self.peak, warm_up=0.05)
        target, noise = _batch(self.clips, self.odds, self.shapes[self.step % 4 == 3], self.rng)
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
            losses = autoencoder_losses(self.model, target, noise, 0.08 * LATENT_STD, 0.0)
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimiser.step()
        self.average.update()
        self.step += 1
        return losses, norm

    def run(self, save_every: float = 120) -> None:
        """Train until the time is over."""
        saved = logged = self.budget.spent
        squared: list[Tensor] = []
        while not self.budget.over:
            losses, norm = self.train_step()
            squared.append(losses.squared)
            spent = self.budget.spent
            if spent - logged > 10:
                psnr = -10 * torch.stack(squared).log10().mean().item()
                check_finite(psnr)
                say(
                    f"autoencoder step {self.step} at {spent:.0f} s: loss {losses.total.item():.4f}"
                    f" psnr {psnr:.2f} size {losses.latent.item():.3f}"
                    f" drift {losses.drift.item():.4f} grid {losses.grid.item():.5f}"
                    f" grad {norm.item():.3f}, {len(squared) / (spent - logged):.1f} steps/s"
                )
                squared, logged = [], spent
            if spent - saved > save_every:
                self.save()
                saved = spent
        self.save()
        say(f"autoencoder: {self.step} steps in {self.budget.spent:.0f} s")


def main() -> None:
    """Train until the time is over, save the state, and export the averaged weights."""
    options = _options()
    torch.backends.cudnn.benchmark = True
    trainer = Trainer(options)
    trainer.run()
    if options.out is not None:
        trainer.average.swap()
        export(trainer.model, trainer.clips, options.out)


if __name__ == "__main__":
    main()
