"""Start an autoencoder as the best linear one: principal components, level by level.

An autoencoder that folds whole 8x8 patches into channels can hold a linear transform exactly: a
principal component analysis of the pixels of a patch, then of two such frames, then of two such
pairs; its inverse in the decoder. Values pass rectifiers because an offset of several standard
deviations keeps them positive; in the decoder a channel that is always one carries the offsets that
layers without bias need. Training goes on from there: it is worth thousands of steps.

This file knows nothing of losses or loops.

Run as ``python -m training.linear_start --clips DIR --eval DIR`` to see what latents of so many
channels are good for before anything is trained.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.data import decode, load_clips, random_crops, read_clips, weights
from training.filters import apply_style
from training.loop import say
from training.patterns import line_correlation

__all__ = ["COMPONENTS", "LATENT_STD", "build_linear", "start_linear"]

COMPONENTS = 56
"""Numbers kept at every level before the last; must leave a channel to spare."""

LATENT_STD = 0.35  # small, so that the decoder's soft clamp to (-3, 3) is nearly linear
_HEADROOM = 4.0  # offset in standard deviations
_SCALE = 0.1  # of features against pixels: keeps the offsets, and so gradients, small


def build_linear(channels: int, refine: int = 32) -> TinyVideoAutoencoder:
    """The small model's autoencoder: 8x8 patches, all stages at the latents' resolution.

    Args:
        channels: of the latents, at most `COMPONENTS`.
        refine: width of the refinement, which adds nothing before it is trained.
    """
    return TinyVideoAutoencoder(
        latent_channels=channels,
        encoder_channels=64,
        decoder_channels=(128, 128, 96, 96),
        frames_to_trim=0,
        patch_size=8,
        spatial_stages=0,
        refine_channels=refine,
    )


def _components(x: Tensor, count: int) -> Tensor:
    """The first principal directions (count, D) of centred rows (n, D)."""
    return torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :count].T


def _set(conv: nn.Conv2d, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Put ``matrix`` (out, in) at the kernel's centre; what it does not cover is small noise."""
    middle = conv.kernel_size[0] // 2
    nn.init.normal_(conv.weight, std=0.3 * (conv.weight[0].numel()) ** -0.5)
    rows, columns = matrix.shape
    conv.weight[:rows] = 0
    conv.weight[:rows, :columns, middle, middle] = matrix
    if bias is not None and conv.bias is not None:
        conv.bias.zero_()
        conv.bias[: len(bias)] = bias


def _memory_blocks(layers: Any) -> list[nn.Conv2d]:
    """Last convolution of every memory block, its branch made small."""
    last: list[nn.Conv2d] = []
    for name, module in layers.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith("conv.4"):
            module.weight.mul_(0.05)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            last.append(module)
        elif isinstance(module, nn.Conv2d) and name.endswith(("conv.0", "conv.2")):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for module in last:
        module.weight[: COMPONENTS + 1] = 0
    return last


def _shift(block: nn.Conv2d, bias: Tensor) -> None:
    assert block.bias is not None
    block.bias[: len(bias)] = bias


@torch.no_grad()
def start_linear(model: TinyVideoAutoencoder, clips: Sequence[Tensor]) -> None:
    """Set ``model``'s weights to the linear transform that suits ``clips``.

    Args:
        model: from `build_linear`.
        clips: float (T, 3, H, W) in [0, 1] each, T a multiple of 4, sides multiples of 8.
    """
    pixels = torch.cat(
        [F.pixel_unshuffle(c, 8).flatten(2).movedim(2, 0).flatten(0, 0) for c in clips]
    )  # cells T 192
    mean = pixels.mean((0, 1))
    k, eye = COMPONENTS, torch.eye(COMPONENTS)
    a0 = _components((pixels - mean).flatten(0, 1), k)
    a0 = _SCALE * a0
    s0 = (pixels - mean) @ a0.T
    pairs = s0.unflatten(1, (-1, 2)).flatten(2)
    a1 = _components(pairs.flatten(0, 1), k)
    s1 = pairs @ a1.T
    fours = s1.unflatten(1, (-1, 2)).flatten(2)
    a2 = _components(fours.flatten(0, 1), k)
    s2 = (fours @ a2.T).flatten(0, 1)
    channels = model.config["latent_channels"]
    std = s2.std(0)[:channels]
    c0, c1, c2 = (_HEADROOM * s.flatten(0, -2).std(0) + 0.02 for s in (s0, s1, s2))
    _encoder(model.encoder, (a0, a1, a2), (c0, c1, c2), mean, LATENT_STD / std, eye)
    _decoder(model.decoder, (a0, a1, a2), (c0, c1, c2), mean, std / LATENT_STD, eye)


def _pooled(matrix: Tensor, width: int) -> Tensor:
    """(k, 2k) over two frames of k numbers -> (k, 2 width) over frames of ``width`` channels."""
    k = matrix.shape[0]
    out = matrix.new_zeros(k, 2 * width)
    out[:, :k], out[:, width : width + k] = matrix[:, :k], matrix[:, k:]
    return out


def _encoder(
    layers: Any,
    maps: tuple[Tensor, ...],
    offsets: tuple[Tensor, ...],
    mean: Tensor,
    gain: Tensor,
    eye: Tensor,
) -> None:
    (a0, a1, a2), (c0, c1, c2) = maps, offsets
    ends = _memory_blocks(layers)
    width = layers[0].out_channels
    _set(layers[0], a0, c0 - a0 @ mean)
    for index, matrix, block, before, after in (
        (2, _pooled(a1, width), ends[0], a1 @ torch.cat([c0, c0]), c1),
        (7, _pooled(a2, width), ends[3], a2 @ torch.cat([c1, c1]), c2),
        (12, eye, ends[6], c2, c2),
    ):
        _set(layers[index].conv, matrix)
        _set(layers[index + 1], eye)
        _shift(block, after - before)
    last = layers[-1]
    nn.init.normal_(last.weight, std=1e-3)
    n, middle = len(gain), 1
    last.weight[:, : len(eye)] = 0
    last.weight[range(n), range(n), middle, middle] = gain
    last.bias.copy_(-gain * c2[:n])


def _grown(matrix: Tensor, shift: Tensor, one: int, width: int, out: int) -> Tensor:
    """Weights of a temporal growth: two frames of ``matrix.T`` halves plus a shift from channel
    ``one``, which itself goes on: (2 out, width)."""
    k = matrix.shape[0]
    weight = matrix.new_zeros(2, out, width)
    for step in range(2):
        part = matrix[:, step * k : (step + 1) * k].T
        weight[step, :k, :k] = part
        weight[step, :k, one] = shift[step * k : (step + 1) * k]
        weight[step, k, one] = 1
    return weight.flatten(0, 1)


def _decoder(
    layers: Any,
    maps: tuple[Tensor, ...],
    offsets: tuple[Tensor, ...],
    mean: Tensor,
    gain: Tensor,
    eye: Tensor,
) -> None:
    (a0, a1, a2), (c0, c1, c2) = maps, offsets
    _memory_blocks(layers)
    k, n = len(eye), len(gain)
    first = eye.new_zeros(k + 1, n)
    first[range(n), range(n)] = gain
    _set(layers[1], first, torch.cat([c2, eye.new_ones(1)]))
    more = torch.eye(k + 1)
    _set(layers[7].conv, more)
    _set(layers[8], more)
    for index, matrix, before, after in ((13, a2, c2, c1), (19, a1, c1, c0)):
        grow, narrow = layers[index].conv, layers[index + 1]
        shift = torch.cat([after, after]) - matrix.T @ before
        width = grow.in_channels
        planned = _grown(matrix, shift, k, width, width)
        nn.init.normal_(grow.weight, std=0.3 * width**-0.5)
        used = planned.abs().sum(1) > 0
        grow.weight[used] = planned[used][..., None, None]
        _set(narrow, more)
    inverse = a0.T / _SCALE**2
    _set(layers[-1], inverse, mean - inverse @ c0)


@torch.no_grad()
def main() -> None:
    """Print, for numbers of channels, what the linear transform reconstructs of some styles."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of the training clips")
    parser.add_argument("--eval", type=Path, required=True, help="folder of held-out clips")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 24, 32, 48])
    parser.add_argument("--styles", nargs="+", default=["photo", "cartoon", "neon", "blueprint"])
    parser.add_argument("--every", type=int, default=8, help="use one training clip in so many")
    options = parser.parse_args()
    listed = read_clips()[:: options.every]
    clips = load_clips(options.clips, listed, torch.device("cpu"), workers=2)
    rng = random.Random(0)
    crops = [random_crops(clips, weights(listed), (4, 8, 128), rng) for _ in range(16)]
    shown = [
        decode(path, (240, 416), 24).float() / 255 for path in sorted(options.eval.glob("*.mp4"))
    ]
    for channels in options.channels:
        torch.manual_seed(0)
        model = build_linear(channels)
        start_linear(model, [clip for batch in crops for clip in batch])
        told = []
        for style in options.styles:
            targets = [apply_style(style, frames) for frames in shown]
            made = [model.decode_raw(model.encode_raw(x[None]))[0].clamp(0, 1) for x in targets]
            both = list(zip(made, targets, strict=True))
            squared = [(a - b).square().mean() for a, b in both]
            level = -10 * torch.stack(squared).log10().mean().item()
            lines = sum(line_correlation(a, b) for a, b in both) / len(both)
            told.append(f"{style} {level:.2f} dB, lines {lines:.2f}")
        say(f"{channels} channels: " + "; ".join(told))


if __name__ == "__main__":
    main()
