"""A small model on two CPU cores, where no GPU is at hand.

The full recipe's data and losses with small crops: an autoencoder that starts as the best linear
transform (``training.linear_start``), latents of some clips, and joint training of a smaller
transformer. ``training.token_start`` is the other way to a transformer, the one that the shipped
weights took.

This file knows nothing of GPUs.

Run as ``python -m training.small PART --clips DIR --state DIR --seconds N``, with the parts
autoencoder, latents and transformer in this order; see the README beside this file.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from stillframe.autoencoder import TinyVideoAutoencoder
from training.autoencoder import STYLES, autoencoder_losses, export
from training.data import load_clips, random_crops, read_clips, weights
from training.filters import apply_style
from training.latents import STYLE_NAMES, encode_styles
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
from training.teacher_forcing import TeacherForcing
from training.transformer import (
    BLOCK,
    Batch,
    CaptionPool,
    Networks,
    build,
    drop_sources,
    encode_text,
    own_prediction,
    random_gap,
    velocity_loss,
)
from training.warm_start import start_from_source

__all__ = ["LAYERS", "main"]

LAYERS = 4
"""Transformer layers of the small model."""

_DEVICE = torch.device("cpu")


def _step(
    loss: Tensor, networks: nn.Module, optimiser: torch.optim.Optimizer, average: Average
) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(networks.parameters(), 0.5)
    optimiser.step()
    average.update()
    return norm.item()


def train_autoencoder(options: argparse.Namespace) -> None:
    """From the best linear transform on, in small crops, a third of them restyled, in bfloat16."""
    listed = read_clips()[: options.limit]
    clips, odds = load_clips(options.clips, listed, _DEVICE, workers=2), weights(listed)
    torch.manual_seed(0)
    rng = random.Random(0)
    model = build_linear()
    examples = [random_crops(clips, odds, (4, 8, 128), rng) for _ in range(12)]
    restyled = [apply_style(rng.choice(STYLES), clip) for clip in examples[0]]
    start_linear(model, [*(clip for batch in examples for clip in batch), *restyled])
    model.to(memory_format=torch.channels_last)
    average = Average(model, decay=0.998)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=1e-5)
    budget, step, squared = Budget(options.seconds, options.seconds), 0, 0.0
    while not budget.over:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(budget.progress, 6e-5, warm_up=0.03)
        target = random_crops(clips, odds, (6, 8, 96) if step % 3 else (4, 16, 96), rng)
        for i in (-1, -2):
            target[i] = apply_style(rng.choice(STYLES), target[i])
        noise = torch.randn_like(target[:1]) * rng.choice((1, 2)) / 255
        with torch.autocast("cpu", torch.bfloat16):
            losses = autoencoder_losses(model, target, noise, 0.05 * LATENT_STD, size_weight=0.0)
        norm = _step(losses.total, model, optimiser, average)
        step += 1
        squared += losses.squared.item()
        if step % options.log == 0:
            psnr = -10 * torch.tensor(squared / options.log).log10().item()
            say(f"autoencoder step {step} at {budget.spent:.0f} s: psnr {psnr:.2f} grad {norm:.2f}")
            squared = 0.0
    average.swap()
    export(model, clips[:60], options.state / "vae")


def _latents(options: argparse.Namespace) -> tuple[list[Tensor], list[float]]:
    """Latents (K, F, C, h, w) of part of the clips in every style, made once and kept on disk."""
    path = options.state / "latents.pt"
    if (state := load_checkpoint(path, _DEVICE)) is not None:
        return state["latents"], state["odds"]
    listed = read_clips()[: options.limit]
    odds = weights(listed)
    rng = random.Random(0)
    chosen = sorted(rng.sample(range(len(listed)), min(options.clips_used, len(listed))))
    clips = load_clips(options.clips, [listed[i] for i in chosen], _DEVICE, workers=2)
    vae = TinyVideoAutoencoder.from_pretrained(options.state / "vae")
    vae.to(torch.bfloat16, memory_format=torch.channels_last)
    latents = []
    for clip in clips:
        start = rng.randint(0, len(clip) - 36)
        window = clip[start : start + 36]
        sides = clip.shape[-2:]
        height, width = min(sides[0] // 16 * 16, 160), min(sides[1] // 16 * 16, 256)
        top, left = rng.randint(0, sides[0] - height), rng.randint(0, sides[1] - width)
        crop = window[..., top : top + height, left : left + width].float() / 255
        latents.append(encode_styles(vae, crop))
        if len(latents) % 20 == 0:
            say(f"{len(latents)} clips encoded")
    used = [odds[i] for i in chosen]
    write_checkpoint({"latents": latents, "odds": used}, path)
    return latents, used


def _draw(
    entries: Sequence[Tensor], odds: Sequence[float], rng: random.Random, count: int
) -> Batch:
    """Random small crops: mostly 6 latent frames of 16x16, some wider, some of 9 frames."""
    h, w, frames = rng.choice(((16, 16, 6), (16, 16, 6), (12, 20, 6), (16, 16, 9), (10, 32, 6)))
    styles = rng.choices(range(len(STYLE_NAMES)), k=count)
    targets, sources = [], []
    for entry, style in zip(rng.choices(entries, odds, k=count), styles, strict=True):
        start = rng.randint(0, entry.shape[1] - frames)
        top, left = rng.randint(0, entry.shape[-2] - h), rng.randint(0, entry.shape[-1] - w)
        crop = entry[:, start : start + frames, :, top : top + h, left : left + w]
        targets.append(crop[style])
        sources.append(crop[0])
    target, source = (torch.stack(x).float().transpose(1, 2) for x in (targets, sources))
    return Batch(target, source, styles)


def train_transformer(options: argparse.Namespace) -> None:
    """The full recipe's loss on small crops."""
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    entries, odds = _latents(options)
    torch.manual_seed(0)
    rng = random.Random(0)
    networks: Networks = build(len(tokenizer), layers=LAYERS)
    start_from_source(networks.transformer)
    average = Average(networks, decay=0.996)
    optimiser = torch.optim.AdamW(networks.parameters(), betas=(0.9, 0.97), weight_decay=0.01)
    captions = CaptionPool(tokenizer, _DEVICE)
    predict = TeacherForcing(networks.transformer, BLOCK)
    budget, step, total, saved = Budget(options.seconds, options.seconds), 0, 0.0, 0.0

    def save() -> None:
        state = {"average": average.state_dict(), "step": step, "spent": budget.spent}
        write_checkpoint(state, options.state / "transformer.pt")

    while not budget.over:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(budget.progress, 1.5e-3, warm_up=0.03)
        batch = _draw(entries, odds, rng, options.batch)
        batch.source = drop_sources(batch.source, 0.15)
        text = encode_text(networks.text_encoder, *captions.draw(batch.styles, rng))
        context, gap = batch.target, random_gap(rng)
        if budget.progress > 0.7 and step % 3 == 0:
            context = own_prediction(predict, batch, text.detach(), gap)
        loss = velocity_loss(predict, batch, context, text, gap)
        norm = _step(loss, networks, optimiser, average)
        total, step = total + loss.item(), step + 1
        if step % options.log == 0:
            check_finite(total)
            say(
                f"transformer step {step} at {budget.spent:.0f} s: "
                f"loss {total / options.log:.4f} grad {norm:.2f}"
            )
            total = 0.0
        if budget.spent - saved > 240:
            save()
            saved = budget.spent
    save()


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description="Train a small model on a CPU.")
    parser.add_argument("part", choices=("autoencoder", "latents", "transformer"))
    parser.add_argument("--clips", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--state", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer")
    parser.add_argument("--seconds", type=float, required=True, help="training time")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--log", type=int, default=50, help="steps between log lines")
    parser.add_argument("--limit", type=int, help="use only so many clips")
    parser.add_argument("--clips-used", type=int, default=40, help="clips encoded for stage two")
    options = parser.parse_args()
    {"autoencoder": train_autoencoder, "latents": _latents, "transformer": train_transformer}[
        options.part
    ](options)


if __name__ == "__main__":
    main()
