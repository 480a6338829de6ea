"""Train the block-causal transformer of the bundled model and, with it, its text encoder.

One step: a batch of latent crops of source and target, every block of the target at its own noise
level; the velocity is predicted for all blocks at once (``teacher_forcing``). A quarter of the
samples see no source, so that plain SDEdit works too. Clean context carries a little noise. After a
third of the training the model meets, every other step, what it made itself: as context, and as
what a second step begins with, so that the second step mends what the first one makes. Channels of
latents count by what is seen of them.

This file knows nothing of pixels.

Run as ``python -m training.transformer --state DIR --tokenizer DIR --seconds 560 --total 1000``, as
often as it takes; every run goes on where the last one stopped. ``torchrun --nproc-per-node 4``
trains on four cards.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.captions import sample_caption
from training.latents import STYLE_NAMES, load_latents
from training.loop import Training, learning_rate, say
from training.muon import Muon, Together
from training.ranks import Ranks
from training.teacher_forcing import TeacherForcing
from training.velocity import BLOCK, Batch, channel_weights, own_prediction, velocity_loss
from training.warm_start import start_from_source, teach_prompts

__all__ = ["CaptionPool", "Networks", "build", "draw_batch", "encode_text", "main"]

TEXT_LENGTH = 32
"""Tokens a caption is padded to."""

# how often a style is drawn, 1 for those that are not here: lines are the hardest to learn
_ODDS = {"photo": 0.5, "cartoon": 2.0, "neon": 2.0, "blueprint": 2.0, "pencil": 1.5}

_OWN = 0.35  # of the training, after which every other step sees what the model itself made

_CLIP = 12  # latent frames a sample

# latent heights and widths of a crop and how often: all have 390 tokens a frame, so one compiled
# graph serves them; the long ones teach distances that a 240x416 crop does not have
_GRIDS = {
    (30, 52): 0.72,
    (52, 30): 0.08,
    (26, 60): 0.06,
    (60, 26): 0.04,
    (20, 78): 0.05,
    (78, 20): 0.05,
}


class Networks(nn.Module):
    """Everything that this file trains."""

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder


def build(vocabulary: int, layers: int = 8, channels: int = 32) -> Networks:
    """Fresh networks of the bundled model's size, for latents of so many channels."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=2 * channels,
        out_channels=channels,
        text_dim=128,
        freq_dim=256,
        ffn_dim=1024,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=1024,
    )
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return Networks(transformer, UMT5EncoderModel(config))


def encode_text(text_encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Encoded captions (B, L, E) of token ids and mask (B, L); zeros where there is no token."""
    hidden = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None].to(hidden.dtype)


class CaptionPool:
    """Tokenised captions of every style, each with a few words dropped.

    Args:
        tokenizer: of the text encoder.
        device: where the token ids live.
        size: captions a style.
        drop: share of words to drop; a caption keeps at least one.
    """

    def __init__(
        self, tokenizer: Any, device: torch.device, size: int = 512, drop: float = 0.07
    ) -> None:
        rng = random.Random(0)
        texts = []
        for name in STYLE_NAMES:
            for _ in range(size):
                words = sample_caption(name, rng).split()
                kept = [word for word in words if rng.random() >= drop]
                texts.append(" ".join(kept or words))
        tokens = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        )
        self.size = size
        self.ids, self.mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)

    def draw(self, styles: Sequence[int], rng: random.Random) -> tuple[Tensor, Tensor]:
        """Token ids and masks (B, L) of one caption for each style number."""
        rows = [style * self.size + rng.randrange(self.size) for style in styles]
        index = torch.tensor(rows).to(self.ids.device, non_blocking=True)
        return self.ids[index], self.mask[index]


def draw_batch(
    entries: Sequence[Tensor], odds: Sequence[float], count: int, rng: random.Random
) -> Batch:
    """Random crops of one grid shape from random entries (K, F, C, h, w) and styles."""
    while True:
        h, w = rng.choices(list(_GRIDS), list(_GRIDS.values()))[0]
        fits = [e.shape[-2] >= h and e.shape[-1] >= w for e in entries]
        if any(fits):
            break
    chosen = rng.choices(
        entries, [weight * fit for weight, fit in zip(odds, fits, strict=True)], k=count
    )
    style_odds = [_ODDS.get(name, 1.0) for name in STYLE_NAMES]
    styles = rng.choices(range(len(STYLE_NAMES)), style_odds, k=count)
    targets, sources = [], []
    for entry, style in zip(chosen, styles, strict=True):
        last = entry.shape[1] - _CLIP
        start = 0 if rng.random() < 0.2 else rng.randint(0, last)
        top, left = rng.randint(0, entry.shape[-2] - h), rng.randint(0, entry.shape[-1] - w)
        crop = entry[:, start : start + _CLIP, :, top : top + h, left : left + w]
        targets.append(crop[style])
        sources.append(crop[0])
    target, source = (torch.stack(x).float().transpose(1, 2) for x in (targets, sources))
    return Batch(target, source, styles)


def random_gap(rng: random.Random) -> int:
    """Latent frames between sink and clip: mostly none, else up to 1000, evenly in the exponent."""
    return 0 if rng.random() < 0.6 else int(math.exp(rng.uniform(0, math.log(1000))))


def drop_sources(source: Tensor, share: float = 0.25) -> Tensor:
    """Sources (B, ...) with a share of the samples set to zero."""
    given = torch.rand(len(source), 1, 1, 1, 1, device=source.device) >= share
    return source * given


def prefer_fastest_attention(device: torch.device) -> None:
    """Of torch's two attention kernels for this hardware, leave on the one that is faster here."""
    if device.type != "cuda":
        return
    times = {}
    switches = {
        "flash": torch.backends.cuda.enable_flash_sdp,
        "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    }
    for name, switch in switches.items():
        for other in switches.values():
            other(other is switch)
        q = torch.randn(24, 1170, 4, 64, device=device, dtype=torch.bfloat16).transpose(1, 2)
        k = torch.randn(24, 2730, 4, 64, device=device, dtype=torch.bfloat16).transpose(1, 2)
        q, k = q.requires_grad_(), k.requires_grad_()
        with contextlib.suppress(RuntimeError):
            for i in range(6):
                if i == 2:
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                F.scaled_dot_product_attention(q, k, k).sum().backward()
            torch.cuda.synchronize()
            times[name] = time.perf_counter() - started
    best = min(times, key=lambda name: times[name])
    for name, switch in switches.items():
        switch(name == best)
    say(f"attention: {best}, 4 passes in { ({k: round(1e3 * v, 2) for k, v in times.items()}) } ms")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the transformer and the text encoder.")
    parser.add_argument("--state", type=Path, required=True, help="folder of latents, checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--seconds", type=float, required=True, help="training time of this chunk")
    parser.add_argument("--total", type=float, help="of the whole schedule, if longer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=8, help="clips a card")
    parser.add_argument("--learning-rate", type=float, default=2.4e-3)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def build_optimiser(networks: Networks) -> Together:
    """Muon for the matrices of the transformer's blocks, AdamW for everything else."""
    blocks: Any = networks.transformer.blocks
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = torch.optim.AdamW(
        [p for p in networks.parameters() if id(p) not in known],
        betas=(0.9, 0.95),
        weight_decay=0.01,
        fused=next(networks.parameters()).device.type == "cuda",
    )
    return Together([Muon(matrices), others])


class Trainer:
    """The state of a training run: networks, optimiser, data and time."""

    def __init__(self, options: argparse.Namespace) -> None:
        ranks = Ranks(options.device)
        self.options, self.device = options, ranks.device
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
        self.entries, self.odds, sensitivity = load_latents(options.state, self.device)
        self.channels = channel_weights(sensitivity)
        torch.manual_seed(0)
        self.networks = build(len(tokenizer), channels=len(sensitivity)).to(self.device)
        optimiser = build_optimiser(self.networks)
        self.training = Training(
            "transformer",
            self.networks,
            optimiser,
            options.state / "transformer.pt",
            (options.seconds, options.total or options.seconds),
            ranks,
            most=1.0,
        )
        self.captions = CaptionPool(tokenizer, self.device)
        if not self.training.step:
            self.start()
        self.predict = TeacherForcing(self.networks.transformer, BLOCK)
        self.cast = (
            torch.autocast("cuda", torch.bfloat16)
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        )

    def start(self) -> None:
        """Put fresh networks where training should start."""
        text_encoder: Any = self.networks.text_encoder
        rng = random.Random(0)

        def encode(styles: Sequence[int]) -> Tensor:
            return encode_text(text_encoder, *self.captions.draw(styles, rng))

        transformer: Any = self.networks.transformer
        teach_prompts(transformer, encode, list(text_encoder.parameters()), len(STYLE_NAMES))
        start_from_source(transformer)
        self.training.restart_average()

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns loss and gradient norm, still on the device."""
        training = self.training
        progress, rng = training.budget.progress, training.rng
        batch = draw_batch(self.entries, self.odds, self.options.batch, rng)
        batch.source = drop_sources(batch.source)
        ids, mask = self.captions.draw(batch.styles, rng)
        gap, own = random_gap(rng), None
        if progress > _OWN and training.step % 2 == 0:
            # a cast of its own: within one, weights cast without gradients would be used again
            with torch.no_grad(), self.cast:
                text = encode_text(self.networks.text_encoder, ids, mask)
                own = own_prediction(self.predict, batch, text, gap)
        with self.cast:
            text = encode_text(self.networks.text_encoder, ids, mask)
            loss = velocity_loss(self.predict, batch, own, text, gap, self.channels)
        norm = training.learn(loss, learning_rate(progress, self.options.learning_rate))
        return {"loss": loss, "gradient": norm}

    def compile(self) -> None:
        """Compile the transformer's blocks, or leave them as they are where that fails."""
        started = time.monotonic()
        blocks: Any = self.networks.transformer.blocks
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False)
        try:
            self.train_step()
            say(f"compiled in {time.monotonic() - started:.0f} s")
        except Exception as error:  # any failure of the compiler leaves eager execution
            for block in blocks:
                block._compiled_call_impl = None
            say(f"training without compilation: {type(error).__name__}: {str(error)[:500]}")


def main() -> None:
    """Train until the time is over and save the state."""
    options = _options()
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(options)
    prefer_fastest_attention(trainer.device)
    if not options.eager:
        trainer.compile()
    trainer.training.run(trainer.train_step)


if __name__ == "__main__":
    main()
