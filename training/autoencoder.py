"""Train the tiny video autoencoder of the bundled model.

Half of each batch is source footage and half one random style of it; one sample in six is a single
frame shown again and again. What the loss asks for, beyond a small error: edges where they belong
(gradients at three scales), faithful shadows (dark areas weigh more), no grid (the part of the
error that repeats with the 8-pixel patch, and steps of the error where patches meet, are punished
alone), an error that stays what it is from frame to frame, latents that stand noise, and latents
that ignore the noise of a camera sensor, because the engine recomputes a patch whose latents move.

This file knows nothing of text or of the transformer.

Run as ``python -m training.autoencoder --clips DIR --state DIR --seconds 500``, or under
``torchrun --nproc-per-node 4`` on four cards; ``--total`` sets the length of the whole schedule
where it is cut into chunks.
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
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.data import load_clips, random_crops, read_clips, weights
from training.filters import FILTERS, apply_style
from training.linear_start import LATENT_STD, build_linear, start_linear
from training.loop import Training, learning_rate, say
from training.ranks import Ranks

__all__ = [
    "Losses",
    "autoencoder_losses",
    "copy_of",
    "edge_error",
    "export",
    "grid_error",
    "latent_statistics",
    "seam_error",
]

STYLES = tuple(name for name in FILTERS if name != "photo")

_STILL = 1 / 6


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


def seam_error(error: Tensor, patch: int) -> Tensor:
    """Mean absolute step of ``error`` (B, T, 3, H, W) where patches of so many pixels meet.

    Where every patch is wrong by another amount, the grid has no sign of its own and `grid_error`
    does not see it.
    """
    return sum(
        (
            (error.diff(dim=dim).abs()).movedim(dim, 0)[patch - 1 :: patch].mean()
            for dim in (-1, -2)
        ),
        error.new_zeros(()),
    )


@dataclass
class Losses:
    """The terms of one step, and the weighted sum that is minimised."""

    total: Tensor
    squared: Tensor
    drift: Tensor
    seams: Tensor
    shimmer: Tensor


def autoencoder_losses(
    model: TinyVideoAutoencoder,
    target: Tensor,
    noise: Tensor,
    latent_noise: float = 0.1,
) -> Losses:
    """Loss of one batch.

    Args:
        model: the autoencoder.
        target: (B, T, 3, H, W) in [0, 1].
        noise: sensor noise to add to the first samples' input, (n, T, 3, H, W), n <= B.
        latent_noise: largest standard deviation of the noise added to latents before decoding.
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
    squared = error.square()
    seams, shimmer = seam_error(error, 8), error.diff(dim=1).abs().mean()
    total = (
        (emphasis * (squared + 1e-6).sqrt()).mean()
        + 12 * (emphasis * squared).mean()
        + 0.4 * edge_error(error)
        + 1.0 * grid_error(error)
        + 0.5 * seams
        + 1.0 * shimmer
        + 0.2 * drift
    )
    return Losses(total, squared.mean().detach(), drift.detach(), seams.detach(), shimmer.detach())


def _batch(
    clips: Sequence[Tensor], odds: Sequence[float], shape: tuple[int, int, int], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Targets, half of them restyled, and sensor noise for every other one of both halves."""
    target = random_crops(clips, odds, shape, rng)
    for clip in target:
        if rng.random() < _STILL:
            clip.copy_(clip[:1].clone().expand_as(clip))
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
    copy_of(model).half().save_pretrained(folder)


def copy_of(model: TinyVideoAutoencoder) -> TinyVideoAutoencoder:
    """A copy with its own weights."""
    # all that the configuration says, also where it was registered after it was built: diffusers
    # takes such entries for defaults, and leaves them out of what is built from a configuration
    known = {name: value for name, value in model.config.items() if not name.startswith("_")}
    twin = TinyVideoAutoencoder.from_config(known)
    twin.load_state_dict(model.state_dict())
    return twin


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the tiny video autoencoder.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--state", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, help="folder for the trained weights")
    parser.add_argument("--seconds", type=float, required=True, help="training time of this chunk")
    parser.add_argument("--total", type=float, help="of the whole schedule, if longer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--channels", type=int, default=32, help="of the latents")
    parser.add_argument("--batch", type=int, default=16, help="clips a card")
    parser.add_argument("--side", type=int, default=192, help="crop side in pixels")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--limit", type=int, help="use only so many clips")
    return parser.parse_args()


class Trainer:
    """The state of a training run: model, optimiser, data and time."""

    def __init__(self, options: argparse.Namespace) -> None:
        ranks = Ranks(options.device)
        self.device = ranks.device
        listed = read_clips()[: options.limit]
        self.clips, self.odds = load_clips(options.clips, listed, self.device), weights(listed)
        say(f"{len(self.clips)} clips, {sum(len(clip) for clip in self.clips)} frames")
        torch.manual_seed(0)
        self.model = self._start(options.channels)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.peak = options.learning_rate
        optimiser = torch.optim.AdamW(
            self.model.parameters(),
            betas=(0.9, 0.99),
            weight_decay=1e-5,
            fused=self.device.type == "cuda",
        )
        self.training = Training(
            "autoencoder",
            self.model,
            optimiser,
            options.state / "autoencoder.pt",
            (options.seconds, options.total or options.seconds),
            ranks,
            most=0.5,
        )
        if not self.training.step:
            self.training.restart_average()
        side = options.side
        # mostly short and wide, sometimes long and small: equal cost, and memory blocks see depth
        self.shapes = [(options.batch, 16, side), (options.batch, 32, side * 3 // 4 // 8 * 8)]

    def _start(self, channels: int) -> TinyVideoAutoencoder:
        """The best linear transform for some of the clips, and some of their styles."""
        rng, model = random.Random(0), build_linear(channels)
        batches = [random_crops(self.clips, self.odds, (4, 8, 128), rng).cpu() for _ in range(16)]
        styled = [apply_style(rng.choice(STYLES), clip) for clip in batches[0]]
        start_linear(model, [*(clip for batch in batches for clip in batch), *styled])
        return model

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns what is to be logged, still on the device."""
        training = self.training
        rate = learning_rate(training.budget.progress, self.peak, warm_up=0.05)
        shape = self.shapes[training.step % 4 == 3]
        target, noise = _batch(self.clips, self.odds, shape, training.rng)
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
            losses = autoencoder_losses(self.model, target, noise, 0.08 * LATENT_STD)
        norm = training.learn(losses.total, rate)
        return {
            "loss": losses.total,
            "dB": -10 * losses.squared.log10(),
            "drift": losses.drift,
            "seams": losses.seams,
            "shimmer": losses.shimmer,
            "gradient": norm,
        }


def main() -> None:
    """Train until the time is over, save the state, and export the averaged weights."""
    options = _options()
    torch.backends.cudnn.benchmark = True
    trainer = Trainer(options)
    trainer.training.run(trainer.train_step)
    if options.out is not None and trainer.training.ranks.first:
        trainer.training.average.swap()
        export(trainer.model, trainer.clips, options.out)


if __name__ == "__main__":
    main()
