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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from training.latents import load_latents
from training.loop import Training, learning_rate
from training.ranks import Ranks
from training.transformer import CaptionPool, draw_batch, encode_text
from training.velocity import noise_levels

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
        ranks = Ranks(options.device)
        self.options, self.device = options, ranks.device
        torch.manual_seed(0)
        causal: Any = WanTransformer3DModel.from_pretrained(options.model / "transformer")
        self.model: Any = sibling(causal.float()).to(self.device)
        text: Any = UMT5EncoderModel.from_pretrained(options.model / "text_encoder")
        self.text_encoder = text.float().to(self.device).requires_grad_(False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model / "tokenizer")
        self.captions = CaptionPool(tokenizer, self.device)
        self.entries, self.odds, _ = load_latents(options.state, self.device)
        optimiser = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.95), fused=self.device.type == "cuda"
        )
        self.training = Training(
            "bidirectional",
            self.model,
            optimiser,
            options.state / "bidirectional.pt",
            (options.seconds, options.total or options.seconds),
            ranks,
            most=1.0,
        )
        self.cast: Any = contextlib.nullcontext()
        if self.device.type == "cuda":
            self.cast = torch.autocast("cuda", torch.bfloat16)

    def encoded(self, styles: Sequence[int]) -> Tensor:
        """Captions of some styles, (B, L, E), some of them empty."""
        with torch.no_grad():
            text = encode_text(self.text_encoder, *self.captions.draw(styles, self.training.rng))
        given = torch.rand(len(text), 1, 1, device=self.device) >= _NO_PROMPT
        return text * given

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the loss, still on the device."""
        training = self.training
        batch = draw_batch(self.entries, self.odds, self.options.batch, training.rng)
        sigma = noise_levels(len(batch.target), 1, self.device, certain=0.15).view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(batch.target)
        with self.cast:
            velocity = self.model(
                hidden_states=batch.target.lerp(noise, sigma),
                timestep=1000 * sigma.flatten(),
                encoder_hidden_states=self.encoded(batch.styles),
                return_dict=False,
            )[0]
            loss = F.mse_loss(velocity.float(), noise - batch.target)
        training.learn(loss, learning_rate(training.budget.progress, self.options.learning_rate))
        return {"loss": loss}

    def export(self) -> None:
        """Write the averaged weights (float16)."""
        self.training.average.swap()
        self.model.half().save_pretrained(
            self.options.state / "bidirectional", max_shard_size="14MB"
        )


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
    trainer = Trainer(_options())
    trainer.training.run(trainer.train_step)
    if trainer.training.ranks.first:
        trainer.export()


if __name__ == "__main__":
    main()
