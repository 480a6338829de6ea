"""Train the refinement of a trained autoencoder: what hides the seams between its patches.

Encoder and decoder stay as they are, so latents do too, and a transformer trained on them fits.
The refinement sees decoded frames only, from a pool that keeps being renewed: a decoded clip serves
many steps, which is what lets two CPU cores do this in twenty minutes.

This file knows nothing of text or of the transformer.

Run as ``python -m training.refine --clips DIR --vae DIR --out DIR --seconds 1200 --device cpu``.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.autoencoder import STYLES, edge_error, grid_error
from training.data import load_clips, random_crops, read_clips, weights
from training.filters import apply_style
from training.loop import Average, Budget, check_finite, learning_rate, say

__all__ = ["refined", "seam_loss", "with_refinement"]

_SHAPE = (1, 16, 192)
_SETTLING = 2  # frames at a clip's start, while the autoencoder's memory fills
_POOL = 600
_BATCH = 6


def with_refinement(vae: TinyVideoAutoencoder, channels: int) -> TinyVideoAutoencoder:
    """The same autoencoder with a fresh refinement, which adds nothing yet."""
    config = {name: value for name, value in vae.config.items() if name[0] != "_"}
    grown = TinyVideoAutoencoder(**{**config, "refine_channels": channels})
    own = {k: v for k, v in vae.state_dict().items() if not k.startswith("refine.")}
    grown.load_state_dict(own, strict=False)
    return grown


def refined(vae: TinyVideoAutoencoder, decoded: Tensor) -> Tensor:
    """Decoded frames (B, 3, H, W) with the refinement added."""
    assert vae.refine is not None
    added = vae.refine(F.pixel_unshuffle(decoded, 2))
    return decoded + F.pixel_shuffle(added, 2)


def seam_loss(made: Tensor, target: Tensor) -> Tensor:
    """Loss of frames (B, 3, H, W): error, edges, shadows, and twice what repeats with the patch."""
    error = (made - target).unsqueeze(0)
    emphasis = 1 + 1.5 * torch.exp(-target.mean(1, keepdim=True) / 0.12)
    squared = error.square()
    plain = (emphasis * (squared + 1e-6).sqrt()).mean() + 12 * (emphasis * squared).mean()
    return plain + 0.4 * edge_error(error) + 2 * grid_error(error)


class _Pool:
    """Pairs of target and decoded frames, the oldest making room for new ones."""

    def __init__(
        self, vae: TinyVideoAutoencoder, clips: Sequence[Tensor], odds: Sequence[float]
    ) -> None:
        self.vae, self.clips, self.odds = vae, clips, odds
        self.rng, self.pairs = random.Random(0), list[tuple[Tensor, Tensor]]()

    @torch.no_grad()
    def renew(self) -> None:
        """Add the frames of one random crop, most of the time restyled."""
        clip = random_crops(self.clips, self.odds, _SHAPE, self.rng)
        if self.rng.random() < 0.6:
            clip = apply_style(self.rng.choice(STYLES), clip[0])[None]
        latents = self.vae.encode_raw(clip)
        latents = latents + 0.03 * self.rng.random() * torch.randn_like(latents)
        decoded = self.vae.decode_raw(latents)
        self.pairs += zip(clip[0, _SETTLING:], decoded[0, _SETTLING:], strict=True)
        self.pairs = self.pairs[-_POOL:]

    def draw(self) -> tuple[Tensor, Tensor]:
        """Targets and decoded frames, (B, 3, H, W) each."""
        pairs = self.rng.sample(self.pairs, min(_BATCH, len(self.pairs)))
        targets, decoded = zip(*pairs, strict=True)
        return torch.stack(targets), torch.stack(decoded)


def train(model: TinyVideoAutoencoder, pool: _Pool, seconds: float) -> None:
    """Train ``model``'s refinement on the pool's frames; leaves the averaged weights in place."""
    assert model.refine is not None
    model.requires_grad_(False)
    model.refine.requires_grad_(True)
    average = Average(model.refine, decay=0.995)
    optimiser = torch.optim.AdamW(model.refine.parameters(), betas=(0.9, 0.99))
    budget, step, sums = Budget(seconds, seconds), 0, torch.zeros(2)
    while not budget.over:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(budget.progress, 1.5e-3, warm_up=0.03)
        if step % 12 == 0:
            pool.renew()
        target, decoded = pool.draw()
        made = refined(model, decoded)
        loss = seam_loss(made, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update()
        step += 1
        errors = [(frames.detach() - target).square().mean().cpu() for frames in (decoded, made)]
        sums += torch.stack(errors)
        if step % 200 == 0:
            before, after = (-10 * (sums / 200).log10()).tolist()
            check_finite(after)
            say(f"refinement step {step} at {budget.spent:.0f} s: {before:.2f} -> {after:.2f} dB")
            sums.zero_()
    average.swap()


def main() -> None:
    """Train until the time is over and write the autoencoder (float16)."""
    parser = argparse.ArgumentParser(description="Train the refinement of an autoencoder.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--seconds", type=float, required=True, help="training time")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--every", type=int, default=5, help="use one clip in so many")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    plain = TinyVideoAutoencoder.from_pretrained(options.vae).float().eval().requires_grad_(False)
    model = with_refinement(plain, options.channels)
    listed = read_clips()[:: options.every]
    clips = load_clips(options.clips, listed, device, workers=2)
    pool = _Pool(plain.to(device), clips, weights(listed))
    train(model.to(device), pool, options.seconds)
    model.half().save_pretrained(options.out)


if __name__ == "__main__":
    main()
