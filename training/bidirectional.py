"""Train a bidirectional sibling of the bundled transformer: every frame attends to every other.

Stock video-to-video pipelines denoise a whole clip at one noise level and show the model no source.
The sibling is for them what the bundled model is for causal streams: small, and trained on the same
latents, so that experiments with `stillframe.hooks` have something that really denoises. It starts
from the bundled weights, without the channels that show the source, and keeps their text encoder.

This file knows nothing of pixels.

Run as ``python -m training.bidirectional --model DIR --state DIR --seconds 400``; every run goes on
where the last one stopped, and writes the averaged weights to ``STATE/bidirectional``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from training.latents import load_latents
from training.loop import (
    Average,
    Budget,
    check_finite,
    learning_rate,
    load_checkpoint,
    say,
    write_checkpoint,
)
from training.transformer import CaptionPool, draw_batch, encode_text, noise_levels

__all__ = ["Trainer", "main", "sibling"]

_NO_PROMPT = 0.1  # share of samples without one, for guidance


def sibling(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """A transformer that sees no source, with the other weights of one that does."""
    config: Any = dict(model.config)
    channels = config["in_channels"] = config["out_channels"]
    made: Any = WanTransformer3DModel.from_config(config)
    weights = model.state_dict()
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"][:, :channels].clone()
    made.load_state_dict(weights)
    return made


class Trainer:
    """The state of a training run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        torch.manual_seed(0)
        causal: Any = WanTransformer3DModel.from_pretrained(options.model / "transformer")
        self.model: Any = sibling(causal.float()).to(self.device)
        text: Any = UMT5EncoderModel.from_pretrained(options.model / "text_encoder")
        self.text_encoder = text.float().to(self.device).requires_grad_(False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model / "tokenizer")
        self.captions = CaptionPool(tokenizer, self.device)
        self.average = Average(self.model)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.95), fused=self.device.type == "cuda"
        )
        self.path = options.state / "bidirectional.pt"
        self.step, spent = 0, 0.0
        if (state := load_checkpoint(self.path, self.device)) is not None:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, spent = state["step"], state["spent"]
            torch.manual_seed(self.step)
        self.rng = random.Random(self.step)
        self.entries, self.odds = load_latents(options.state, self.device)
        self.cast: Any = contextlib.nullcontext()
        if self.device.type == "cuda":
            self.cast = torch.autocast("cuda", torch.bfloat16)
        self.budget = Budget(options.seconds, options.total or options.seconds, spent)

    def encoded(self, styles: Sequence[int]) -> Tensor:
        """Captions of some styles, (B, L, E), some of them empty."""
        with torch.no_grad():
            text = encode_text(self.text_encoder, *self.captions.draw(styles, self.rng))
        given = torch.rand(len(text), 1, 1, device=self.device) >= _NO_PROMPT
        return text * given

    def train_step(self) -> Tensor:
        """One optimiser step; returns the loss, still on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.budget.progress, self.options.learning_rate)
        batch = draw_batch(self.entries, self.odds, self.options.batch, self.rng)
        sigma = noise_levels(len(batch.target), 1, self.device).view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(batch.target)
        with self.cast:
            velocity = self.model(
                hidden_states=batch.target.lerp(noise, sigma),
                timestep=1000 * sigma.flatten(),
                encoder_hidden_states=self.encoded(batch.styles),
                return_dict=False,
            )[0]
            loss = F.mse_loss(velocity.float(), noise - batch.target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.average.update()
        self.step += 1
        return loss.detach()

    def run(self) -> None:
        """Train until the time is over, then write checkpoint and weights."""
        losses: list[Tensor] = []
        while not self.budget.over:
            losses.append(self.train_step())
            if self.step % 100 == 0:
                mean = torch.stack(losses).mean().item()
                check_finite(mean)
                say(f"bidirectional step {self.step} at {self.budget.spent:.0f} s: {mean:.4f}")
                losses = []
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.budget.spent,
        }
        write_checkpoint(state, self.path)
        self.average.swap()
        self.model.half().save_pretrained(
            self.options.state / "bidirectional", max_shard_size="14MB"
        )
        say(f"bidirectional: {self.step} steps in {self.budget.spent:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a bidirectional sibling.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the bundled model")
    parser.add_argument("--state", type=Path, required=True, help="folder of latents, checkpoint")
    parser.add_argument("--seconds", type=float, required=True, help="training time of this chunk")
    parser.add_argument("--total", type=float, help="of the whole schedule, if longer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    return parser.parse_args()


def main() -> None:
    """Train until the time is over and save the state."""
    torch.set_float32_matmul_precision("high")
    Trainer(_options()).run()


if __name__ == "__main__":
    main()
