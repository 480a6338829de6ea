"""Start a transformer as one small network a style, applied token by token.

A Wan transformer can hold this exactly enough: cross-attention turns the prompt into an indicator
of the style, the first feed-forward layer sharpens it, and the second holds one small network a
style, of which the indicator lets a single one through; it maps a source token to the edited one.
The output is ``(noisy - edited) / sigma``. Large constant features keep layer norms from changing
scale. Self-attention starts with no effect. Prompt path and style networks are trained apart, in
minutes on a CPU, which joint training from scratch would spend on finding out what a prompt is.

This file knows nothing of pixels.

Run as ``python -m training.token_start --state DIR --tokenizer DIR``, where the state has latents.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer

from stillframe.grid import patchify
from training.latents import STYLE_NAMES, load_latents
from training.loop import Average, say, write_checkpoint
from training.transformer import CaptionPool, Networks, build, encode_text

__all__ = ["LAYERS", "assemble", "fit_styles", "train_prompts"]

LAYERS = 4
_TOKEN = 64  # numbers of a latent token
_UNITS = 80  # hidden units a style
_NOISY, _SOURCE, _EDITED = (slice(64 * i, 64 * (i + 1)) for i in range(3))
_SOFT, _SHARP = 192, 208  # where the style indicators start
_BALANCE = 223  # minus the sum of a token's noisy and source numbers
_CONSTANT, _SIZE = 224, 60.0  # constant features and their size
_GATE = 12.0


def _scale() -> float:
    """Standard deviation of a token's features, which layer norms divide by."""
    return ((_SIZE**2 * (256 - _CONSTANT) + 3 * _TOKEN) / 256) ** 0.5


def fit_styles(entries: list[Tensor], steps: int = 1500) -> list[nn.Sequential]:
    """One network (64 -> 80 -> 64) a style, from source tokens to edited tokens."""
    networks = []
    source = torch.cat([patchify(e[:1].float().transpose(1, 2), 2).flatten(0, 1) for e in entries])
    generator = torch.Generator().manual_seed(0)
    for style, name in enumerate(STYLE_NAMES):
        latents = [e[style : style + 1].float().transpose(1, 2) for e in entries]
        target = torch.cat([patchify(x, 2).flatten(0, 1) for x in latents])
        network = nn.Sequential(
            nn.Linear(_TOKEN, _UNITS), nn.GELU(approximate="tanh"), nn.Linear(_UNITS, _TOKEN)
        )
        optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            rows = torch.randint(len(source), (1024,), generator=generator)
            # the transformer's norms shift and scale what enters a unit a little: be robust to it
            inner = network[0](source[rows]) * (1 + 0.01 * torch.randn(1024, 1))
            out = network[2](network[1](inner + 0.05 * torch.randn(1024, 1)))
            loss = F.mse_loss(out, target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        share = loss.item() / target.var().item()
        say(f"{name}: unexplained {share:.3f} (unchanged source {_rest(source, target):.3f})")
        networks.append(network)
    return networks


def _rest(source: Tensor, target: Tensor) -> float:
    return F.mse_loss(source, target).item() / target.var().item()


def train_prompts(networks: Networks, captions: CaptionPool, steps: int = 1200) -> None:
    """Teach text encoder, text projection and the first cross-attention to name the style."""
    transformer: Any = networks.transformer
    attention = transformer.blocks[0].attn2
    nn.init.zeros_(attention.to_q.weight)
    nn.init.normal_(attention.to_q.bias)
    nn.init.zeros_(attention.to_out[0].bias)
    parts = (networks.text_encoder, transformer.condition_embedder.text_embedder, attention)
    optimiser = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng, count = random.Random(0), len(STYLE_NAMES)
    for step in range(steps):
        styles = rng.choices(range(count), k=48)
        text = encode_text(networks.text_encoder, *captions.draw(styles, rng))
        hidden = transformer.condition_embedder.text_embedder(text)
        named = attention(torch.zeros(48, 1, 256), hidden, None, None)[:, 0, _SOFT : _SOFT + count]
        loss = F.mse_loss(named, F.one_hot(torch.tensor(styles), count).float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for part in parts for p in part.parameters()], 1.0)
        attention.to_q.weight.grad = None
        optimiser.step()
        schedule.step()
        if step % 200 == 199:
            right = (named.argmax(1) == torch.tensor(styles)).float().mean().item()
            say(f"prompts step {step + 1}: error {loss.item():.4f}, right {right:.2f}")
    rest = torch.ones(256, dtype=torch.bool)
    rest[_SOFT : _SOFT + count] = False
    attention.to_out[0].weight.data[rest] = 0
    attention.to_out[0].bias.data[rest] = 0


def _timesteps(transformer: Any) -> None:
    """Fit the timestep embedding to ``1 / sigma - 1`` in every feature, which scales the output."""
    embedder = transformer.condition_embedder
    sigma = torch.linspace(0.25, 1, 400)
    time = embedder.time_embedder
    features = F.silu(time.linear_1(embedder.timesteps_proj(1000 * sigma)))
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    wanted = (1 / sigma - 1).double()
    ridge = 1e-2 * torch.eye(features.shape[1], dtype=torch.double)
    solved = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted).float()
    time.linear_2.weight.copy_(solved[:-1].expand_as(time.linear_2.weight))
    time.linear_2.bias.fill_(solved[-1].item())
    nn.init.zeros_(embedder.time_proj.weight)
    nn.init.zeros_(embedder.time_proj.bias)


@torch.no_grad()
def assemble(transformer: Any, styles: list[nn.Sequential]) -> None:
    """Write the style networks, and what carries them, into a transformer of width 256."""
    scale = _scale()
    embed = transformer.patch_embedding
    nn.init.zeros_(embed.weight)
    nn.init.zeros_(embed.bias)
    for place in range(4):
        for channel in range(16):
            row = place * 16 + channel
            embed.weight[row, channel, 0, place // 2, place % 2] = 1
            embed.weight[64 + row, 16 + channel, 0, place // 2, place % 2] = 1
    embed.weight[_BALANCE] = -1  # the features' mean stays zero, so layer norms take nothing off
    embed.bias[_CONSTANT::2], embed.bias[_CONSTANT + 1 :: 2] = _SIZE, -_SIZE
    for number, block in enumerate(transformer.blocks):
        block.scale_shift_table.zero_()
        block.scale_shift_table[0, 5] = 1  # the feed-forward gate
        block.scale_shift_table[0, 2] = 0.1  # the self-attention gate
        for layer in (block.attn1.to_out[0], block.ffn.net[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if number:
            nn.init.zeros_(block.attn2.to_out[0].weight)
            nn.init.zeros_(block.attn2.to_out[0].bias)
    _sharpen(transformer.blocks[0].ffn, len(styles), scale)
    _styles(transformer.blocks[1].ffn, styles, scale)
    _timesteps(transformer)
    transformer.scale_shift_table.zero_()
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    transformer.proj_out.weight[:, _NOISY] = scale * torch.eye(_TOKEN)
    transformer.proj_out.weight[:, _EDITED] = -scale * torch.eye(_TOKEN)


def _sharpen(ffn: Any, count: int, scale: float) -> None:
    """Indicators between 0.35 and 0.65 become a straight line from 0 to 1, and flat outside."""
    first, second, steep = ffn.net[0].proj, ffn.net[2], 40.0
    for style in range(count):
        for unit, edge, sign in ((2 * style, 0.35, 1.0), (2 * style + 1, 0.65, -1.0)):
            first.weight[unit] = 0
            first.weight[unit, _SOFT + style] = steep * scale
            first.bias[unit] = -steep * edge
            second.weight[_SHARP + style, unit] = sign / (0.3 * steep)


def _styles(ffn: Any, styles: list[nn.Sequential], scale: float) -> None:
    first, second = ffn.net[0].proj, ffn.net[2]
    for style, network in enumerate(styles):
        units = slice(style * _UNITS, (style + 1) * _UNITS)
        enter: Any = network[0]
        leave: Any = network[2]
        first.weight[units] = 0
        first.weight[units, _SOURCE] = scale * enter.weight
        first.weight[units, _SHARP + style] = _GATE * scale
        first.bias[units] = enter.bias - _GATE
        second.weight[_EDITED, units] = leave.weight
        # the bias of the network's output comes with the indicator: one more unit, always positive
        unit = len(styles) * _UNITS + style
        first.weight[unit] = 0
        first.weight[unit, _SHARP + style] = _GATE * scale
        first.bias[unit] = 0
        second.weight[_EDITED, unit] = leave.bias / _GATE


def main() -> None:
    """Make the start and store it as a checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder with latents.pt")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    networks = build(len(tokenizer), layers=LAYERS)
    entries, _ = load_latents(options.state, torch.device("cpu"))
    train_prompts(networks, CaptionPool(tokenizer, torch.device("cpu")), options.steps * 4 // 5)
    assemble(networks.transformer, fit_styles(entries, options.steps))
    average = Average(networks)
    state = {"average": average.state_dict(), "step": 0, "spent": 0.0}
    write_checkpoint(state, options.state / "transformer.pt")


if __name__ == "__main__":
    main()
