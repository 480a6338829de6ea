"""Train the decoder on what the transformer makes, against what it should have made.

Encoder and transformer stay as they are, so latents mean what they did. The decoder learns to hide
what a small transformer leaves in them: the grid of its 2x2 patches, and the four phases in which a
still picture came out. Two commands: a pool of clips with the latents that the model makes of them
(classical filters say what should have come out), and training on it. Both resume.

Half the pool is what the transformer made, the rest what the encoder made of pictures; one clip in
five is a single frame shown again and again.

Run as ``python -m training.decoder pool --clips DIR --model DIR --pool DIR``, then
``python -m training.decoder train --model DIR --pool DIR --out DIR --seconds 5400``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.autoencoder import copy_of, edge_error, grid_error, seam_error
from training.captions import canonical
from training.data import load_clips, read_clips
from training.evaluate import Model
from training.filters import FILTERS, apply_style
from training.latents import cover
from training.loop import Training, learning_rate, say, write_checkpoint
from training.ranks import Ranks
from training.rollout import Rollout
from training.velocity import BLOCK

__all__ = ["DecoderLosses", "Sample", "decoder_losses", "make_entry", "window"]

STYLES = tuple(FILTERS)
_SIGMAS = (1.0, 0.4)  # the command line's
_BLOCKS = 3  # that are made, of which two are kept: the first ones, or the last ones
_KEPT = 2 * BLOCK
_SETTLING = 2  # latent frames without a loss where a clip does not begin, while memories fill
_TALL, _WIDE = 240, 416
_PATCH = 16  # pixels of a token
_STILL = 0.2
_MARGIN = 3  # latents at the sides of a crop that are no sides of the picture


class Sample(NamedTuple):
    """A batch.

    Attributes:
        latents: (B, F, C, h, w).
        target: frames to be made of them, (B, 4F, 3, H, W), 0 to 1.
        inside: (B, 1, 1, H, W), where the decoder sees around it what it sees in a whole picture.
        settling: latent frames at the start that are without a loss.
    """

    latents: Tensor
    target: Tensor
    inside: Tensor
    settling: int


class DecoderLosses(NamedTuple):
    """The terms of one step, and the weighted sum that is minimised."""

    total: Tensor
    squared: Tensor
    seams: Tensor
    shimmer: Tensor


def decoder_losses(made: Tensor, target: Tensor, inside: Tensor) -> DecoderLosses:
    """Loss of decoded frames (B, T, 3, H, W), of the pixels that count (B, 1, 1, H, W).

    A small error, more so in shadows; edges where they belong; no part of the error that repeats
    with the autoencoder's patches, and no steps where those or the transformer's meet; and an error
    that stays what it is from frame to frame, so that what is still comes out still.

    The decoder of a crop lacks what is beyond its sides. What it makes there is taken for right, so
    that it is not learnt from and spoils neither the figures nor the steps to it.
    """
    error = torch.where(inside, made - target, 0)
    emphasis = 1 + 1.5 * torch.exp(-target.mean(2, keepdim=True) / 0.12)
    squared = error.square()
    seams = seam_error(error, 8) + seam_error(error, _PATCH)
    shimmer = error.diff(dim=1).abs().mean()
    total = (
        (emphasis * (squared + 1e-6).sqrt()).mean()
        + 12 * (emphasis * squared).mean()
        + 0.4 * edge_error(error)
        + grid_error(error)
        + grid_error(error, _PATCH)
        + 2 * seams
        + 2 * shimmer
    )
    mean = squared.mean().detach() / inside.float().mean()
    return DecoderLosses(total, mean, seams.detach(), shimmer.detach())


def window(frames: Tensor, rng: random.Random) -> Tensor:
    """A random part of (T, 3, H, W) of at most 240x416, or 416x240, in whole tokens."""
    height, width = frames.shape[-2:]
    tall, wide = (_TALL, _WIDE) if width >= height else (_WIDE, _TALL)
    tall, wide = (
        min(had, most) // _PATCH * _PATCH for had, most in ((height, tall), (width, wide))
    )
    top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
    return frames[..., top : top + tall, left : left + wide]


@torch.no_grad()
def make_entry(model: Model, clip: Tensor, rng: random.Random, made: int = 3) -> dict[str, Tensor]:
    """One clip with what the model makes of it.

    Args:
        model: the model folder's parts.
        clip: (T, 3, H, W) uint8.
        rng: decides everything but the noise.
        made: styles that the transformer makes; one more, and the source, are encoded pictures.

    Returns:
        latents (K, F, C, h, w) float16, frames (K, 4F, 3, H, W) uint8, and ``settling``.
    """
    count = 4 * BLOCK * _BLOCKS
    first = rng.randint(0, len(clip) - count)
    frames = window(cover(clip[first : first + count], 1.0, rng.random() < 0.5), rng)
    still = rng.random() < _STILL
    if still:
        frames = frames[:1].expand_as(frames)
    start = 0 if rng.random() < 0.5 else count // 4 - _KEPT
    kept = slice(start, start + _KEPT)
    source = model.vae.encode(frames[None])[:, :, : kept.stop]
    styles = rng.sample(STYLES, made)
    noise = torch.randn(len(_SIGMAS), made, *source.shape[1:], device=source.device)
    rollout = Rollout(model.transformer, BLOCK)
    with torch.autocast(source.device.type, torch.bfloat16), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mismatch dtype")  # of norms, which stay in float32
        text = model.text([canonical(style) for style in styles])
        sources = source.expand(made, *source.shape[1:])
        results = rollout(sources, text, _SIGMAS, noise, context=model.context)
    # the filters cost more than the model: on what is kept alone
    seen = frames[4 * kept.start : 4 * kept.stop]
    named = (*styles, rng.choice(STYLES), "photo")
    shown = torch.stack([_target(style, seen, still) for style in named])
    encoded = model.vae.encode(shown[-2:]).transpose(1, 2)
    latents = torch.cat([results[:, :, kept].transpose(1, 2), encoded])
    return {
        "latents": latents.half().cpu(),
        "target": (shown * 255).round().byte().cpu(),
        "settling": torch.tensor(_SETTLING if start else 0),
    }


def _target(style: str, frames: Tensor, still: bool) -> Tensor:
    if still:
        return apply_style(style, frames[:1]).expand_as(frames)
    return apply_style(style, frames)


def fill_pool(options: argparse.Namespace) -> None:
    """Write the entries that are not there yet, one a clip."""
    ranks = Ranks(options.device)
    device, model = ranks.device, Model(options.model, ranks.device)
    listed = read_clips()
    for number, clip in ranks.share(list(enumerate(listed))[:: options.every]):
        path = options.pool / f"{number:04d}.pt"
        if path.exists():
            continue
        torch.manual_seed(number)
        (frames,) = load_clips(options.clips, [clip], device, workers=1)
        write_checkpoint(make_entry(model, frames, random.Random(number)), path)
        if number % 20 == 0:
            say(f"clip {number + 1} of {len(listed)}")


class Pool:
    """Random parts of the pool's entries, of so many latents a side, read as they are needed."""

    def __init__(self, folder: Path, rng: random.Random, batch: int, side: int) -> None:
        self.paths = sorted(folder.glob("*.pt"))
        if len(self.paths) < batch:
            raise ValueError(f"{folder} holds {len(self.paths)} entries, and a batch is of {batch}")
        self.rng, self.batch, self.side = rng, batch, side

    def draw(self) -> Sample:
        """A batch, each of another clip."""
        drawn = [self._one(path) for path in self.rng.sample(self.paths, self.batch)]
        latents, targets, inside, settling = zip(*drawn, strict=True)
        return Sample(
            torch.stack(latents), torch.stack(targets), torch.stack(inside), max(settling)
        )

    def _one(self, path: Path) -> Sample:
        entry = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        row = self.rng.randrange(len(entry["latents"]))
        latents, target = entry["latents"][row], entry["target"][row]
        top, left = (2 * self.rng.randint(0, (had - self.side) // 2) for had in latents.shape[-2:])
        down, right = top + self.side, left + self.side
        cut = latents[..., top:down, left:right].float()
        shown = target[..., 8 * top : 8 * down, 8 * left : 8 * right].float() / 255
        inside = torch.zeros(1, 1, 8 * self.side, 8 * self.side, dtype=torch.bool)
        height, width = latents.shape[-2:]
        inside[
            ...,
            8 * _margin(top) : 8 * (self.side - _margin(height - down)),
            8 * _margin(left) : 8 * (self.side - _margin(width - right)),
        ] = True
        return Sample(cut, shown, inside, int(entry["settling"]))


def _margin(beyond: int) -> int:
    """Latents without a loss at a side of a crop with so many beyond it in the picture."""
    return _MARGIN if beyond else 0


def raw_latents(vae: TinyVideoAutoencoder, latents: Tensor) -> Tensor:
    """What the decoder's first layer is given for normalised latents (B, F, C, h, w)."""
    mean, std = vae.statistics(latents)
    return latents * std + mean


def trained_parts(vae: TinyVideoAutoencoder) -> nn.ModuleList:
    """What is trained: the decoder and its refinement."""
    return nn.ModuleList([vae.decoder, *([] if vae.refine is None else [vae.refine])])


class Trainer:
    """The state of a training run: model, optimiser, data and time."""

    def __init__(self, options: argparse.Namespace) -> None:
        ranks = Ranks(options.device)
        self.device = ranks.device
        vae = TinyVideoAutoencoder.from_pretrained(options.model / "vae").float()
        self.vae = vae.to(self.device, memory_format=torch.channels_last)
        self.vae.requires_grad_(False)
        self.parts = trained_parts(self.vae)
        self.parts.requires_grad_(True)
        self.peak = options.learning_rate
        optimiser = torch.optim.AdamW(self.parts.parameters(), betas=(0.9, 0.99), weight_decay=1e-5)
        self.training = Training(
            "decoder",
            self.parts,
            optimiser,
            options.out / "decoder.pt",
            (options.seconds, options.total or options.seconds),
            ranks,
            most=0.5,
        )
        self.pool = Pool(options.pool, self.training.rng, options.batch, options.side)

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns what is to be logged."""
        sample = self.pool.draw()
        latents, target = sample.latents.to(self.device), sample.target.to(self.device)
        strength = 0.03 * torch.rand(len(latents), 1, 1, 1, 1, device=self.device)
        latents = latents + strength * torch.randn_like(latents)
        with torch.autocast(self.device.type, torch.bfloat16):
            made = self.vae.decode_raw(raw_latents(self.vae, latents))
        seen = slice(4 * sample.settling, None)
        inside = sample.inside.to(self.device)
        losses = decoder_losses(made[:, seen].float(), target[:, seen], inside)
        progress = self.training.budget.progress
        self.training.learn(losses.total, learning_rate(progress, self.peak, warm_up=0.03))
        return {
            "dB": -10 * losses.squared.log10(),
            "seams": losses.seams,
            "shimmer": losses.shimmer,
        }

    def export(self, folder: Path) -> None:
        """Write the autoencoder with the averaged weights (float16)."""
        average = self.training.average
        average.swap()
        with contextlib.ExitStack() as undo:
            undo.callback(average.swap)
            copy_of(self.vae).half().save_pretrained(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the decoder on what the model makes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("pool", "train"):
        command = commands.add_parser(name)
        command.add_argument("--model", type=Path, required=True, help="model folder")
        command.add_argument("--pool", type=Path, required=True, help="folder of the pool")
        command.add_argument("--device", default="cpu")
    pool = commands.choices["pool"]
    pool.add_argument("--clips", type=Path, required=True)
    pool.add_argument("--every", type=int, default=2, help="use one clip in so many")
    train = commands.choices["train"]
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoint and result")
    train.add_argument("--seconds", type=float, required=True, help="training time of this chunk")
    train.add_argument("--total", type=float, help="of the whole schedule, if longer")
    train.add_argument("--batch", type=int, default=2)
    train.add_argument("--side", type=int, default=20, help="even side of crops in latents")
    train.add_argument("--learning-rate", type=float, default=6e-5)
    return parser.parse_args()


def main() -> None:
    """Fill the pool, or train until the time is over and write the autoencoder."""
    options = _options()
    if options.command == "pool":
        fill_pool(options)
        return
    trainer = Trainer(options)
    trainer.training.run(trainer.train_step)
    if trainer.training.ranks.first:
        trainer.export(options.out / "vae")


if __name__ == "__main__":
    main()
