"""What a trained model folder reaches: reconstruction, edits against their filters, still patches.

Peak signal-to-noise ratio of the autoencoder on each clip; of edits against the filter's own
result, style by style and for several noise schedules; by how much the latents of unchanged
footage move, which decides what the engine can prune; and, with ``--faults``, what means over
pictures hide (`training.patterns`), of the autoencoder and of every style.

Inference is ``training.rollout``: block-causal, nothing pruned. It knows nothing of training.

Run as ``python -m training.evaluate --model FOLDER --clips FOLDER``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from training.captions import canonical
from training.data import decode
from training.filters import FILTERS, apply_style
from training.loop import say
from training.patterns import grid_ratio, line_correlation, still_change
from training.rollout import Rollout
from training.transformer import TEXT_LENGTH, encode_text
from training.velocity import BLOCK

__all__ = ["Model", "latent_change", "psnr", "reconstruct", "whole_blocks"]

_SIZE = (240, 416)
_TOKEN = 16  # pixels


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors in [0, 1]; 100 where they are equal."""
    return -10 * (a.float() - b.float()).square().mean().clamp_min(1e-10).log10().item()


def latent_change(latents: Tensor) -> Tensor:
    """Mean absolute change of every 2x2 patch of (1, C, F, h, w) from one latent frame to the next.

    The first two changes are left out: the autoencoder's memory is still filling.

    Raises:
        ValueError: for fewer than 4 latent frames, which have no other change.
    """
    if latents.shape[2] < 4:
        raise ValueError(f"a change takes 4 latent frames, got {latents.shape[2]}")
    change = (latents[0, :, 1:] - latents[0, :, :-1]).abs().mean(0)
    return F.avg_pool2d(change[2:], 2).flatten()


class Model:
    """The parts of a model folder, in float32; ``parts`` says whether the transformer is needed."""

    def __init__(self, folder: Path, device: torch.device, *, parts: bool = True) -> None:
        self.device = device
        self.vae = TinyVideoAutoencoder.from_pretrained(folder / "vae").float().to(device).eval()
        if parts:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
            text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
            self.text_encoder = text_encoder.float().to(device).eval()
            transformer: Any = WanTransformer3DModel.from_pretrained(folder / "transformer")
            self.transformer = transformer.float().to(device).eval()
            index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
            self.context: float = index.get("context_noise", 0.0)

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Tensor:
        """Encoded captions (B, L, E)."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        ).to(self.device)
        return encode_text(self.text_encoder, tokens.input_ids, tokens.attention_mask)


@torch.no_grad()
def reconstruct(vae: TinyVideoAutoencoder, frames: Tensor) -> Tensor:
    """Frames (T, 3, H, W) through the autoencoder and back."""
    return vae(frames[None])[0]


@torch.no_grad()
def edits(
    model: Model,
    frames: Tensor,
    styles: Sequence[str],
    sigmas: Sequence[float],
    sdedit: bool = False,
) -> list[Tensor]:
    """``frames`` (T, 3, H, W) restyled in every style: (T, 3, H, W) each, same noise for all."""
    source = model.vae.encode(frames[None])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(sigmas), *source.shape, generator=generator).to(model.device)
    rollout, results = Rollout(model.transformer, BLOCK), []
    for style in styles:
        text = model.text([canonical(style)])
        made = rollout(source, text, sigmas, noise, sdedit=sdedit, context=model.context)
        results.append(model.vae.decode(made)[0])
    return results


def _show(image: Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0).cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8)


def _sheet(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Write a grid of images (3, H, W) to a picture file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack([np.hstack([_show(x) for x in row]) for row in rows]))


def reconstruction_table(model: Model, clips: dict[str, Tensor]) -> None:
    """Print, for every clip, reconstruction PSNR of source and styles and how still latents are."""
    say("clip                    source  styles(mean, worst)     change: share < .15, quartiles")
    means = []
    for name, frames in clips.items():
        source = psnr(reconstruct(model.vae, frames), frames)
        restyled = {s: apply_style(s, frames) for s in FILTERS if s != "photo"}
        scores = {s: psnr(reconstruct(model.vae, x), x) for s, x in restyled.items()}
        worst = min(scores, key=lambda s: scores[s])
        with torch.no_grad():
            change = latent_change(model.vae.encode(frames[None]))
        quartiles = change.quantile(torch.tensor([0.25, 0.5, 0.75], device=change.device)).tolist()
        say(
            f"{name:22s} {source:7.2f} {sum(scores.values()) / len(scores):7.2f} "
            f"{scores[worst]:6.2f} {worst:12s} {(change < 0.15).float().mean().item():6.3f}  "
            + " ".join(f"{q:.3f}" for q in quartiles)
        )
        means.append(source)
    say(f"mean reconstruction {sum(means) / len(means):.2f} dB")


def edit_table(
    model: Model,
    clips: dict[str, Tensor],
    styles: Sequence[str],
    schedules: Sequence[Sequence[float]],
    sdedit: bool,
    sheets: Path | None,
) -> None:
    """Print PSNR of edits against the filter's own result, styles down, schedules across."""
    scores: dict[tuple[int, str], list[float]] = {}
    for name, frames in clips.items():
        targets = [apply_style(style, frames) for style in styles]
        for i, sigmas in enumerate(schedules):
            made = edits(model, frames, styles, sigmas, sdedit)
            for style, got, target in zip(styles, made, targets, strict=True):
                scores.setdefault((i, style), []).append(psnr(got, target))
            if sheets is not None:
                middle = len(frames) // 2 + 2
                rows = [[t[middle], g[middle]] for t, g in zip(targets, made, strict=True)]
                _sheet(rows, sheets / f"{name}-{i}{'-sdedit' if sdedit else ''}.png")
    say("style            " + "  ".join(",".join(f"{s:g}" for s in one) for one in schedules))
    average = []
    for style in styles:
        row = [sum(x) / len(x) for x in (scores[i, style] for i in range(len(schedules)))]
        average.append(row)
        say(f"{style:14s} " + "  ".join(f"{x:9.2f}" for x in row))
    means = [sum(column) / len(column) for column in zip(*average, strict=True)]
    say(f"{'mean':14s} " + "  ".join(f"{x:9.2f}" for x in means))


def _said(name: str, rows: Sequence[Sequence[float]]) -> None:
    """A line of means over clips."""
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    say(f"{name:14s} " + "  ".join(f"{x:9.3f}" for x in means))


def fault_table(
    model: Model, clips: dict[str, Tensor], styles: Sequence[str], sigmas: Sequence[float]
) -> None:
    """Print grid ratios, correlation of lines, and what a still clip changes by, style by style.

    The still clips are the middle frame of each, shown again and again. Beside the lines stand
    those that the autoencoder alone keeps of the filter's own result.
    """
    titles = (f"grid {_TOKEN}", f"grid {_TOKEN // 2}", "lines", "still", "coded")
    say(f"{'':14s} " + "  ".join(f"{title:>9s}" for title in titles))
    decoded: list[list[float]] = []
    rows: dict[str, list[list[float]]] = {style: [] for style in styles}
    for frames in clips.values():
        still = frames[len(frames) // 2].expand_as(frames)
        targets = [frames, *(apply_style(style, frames) for style in styles)]
        moving = [reconstruct(model.vae, frames), *edits(model, frames, styles, sigmas)]
        standing = [reconstruct(model.vae, still), *edits(model, still, styles, sigmas)]
        told = [
            [
                grid_ratio(made, _TOKEN, target),
                grid_ratio(made, _TOKEN // 2, target),
                line_correlation(made, target),
                still_change(stood),
                line_correlation(reconstruct(model.vae, target), target),
            ]
            for made, target, stood in zip(moving, targets, standing, strict=True)
        ]
        decoded.append(told[0])
        for style, row in zip(styles, told[1:], strict=True):
            rows[style].append(row)
    _said("autoencoder", decoded)
    for style in styles:
        _said(style, rows[style])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a model folder.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="folder with held-out clips")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--styles", nargs="*", default=list(FILTERS))
    parser.add_argument("--schedules", nargs="*", default=["1", "1,.6"], help="sigmas, by commas")
    parser.add_argument("--sdedit", action="store_true", help="give the model no source channels")
    parser.add_argument("--faults", action="store_true", help="grids, lines, still clips instead")
    parser.add_argument("--autoencoder-only", action="store_true")
    parser.add_argument("--sheets", type=Path, help="folder for pictures: target, edit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="use only so many clips")
    return parser.parse_args()


def whole_blocks(frames: int) -> int:
    """The most frames, up to so many, that are whole blocks.

    Raises:
        ValueError: they are not two blocks, of which changes could be told.
    """
    block = 4 * BLOCK
    if frames < 2 * block:
        raise ValueError(f"an evaluation takes {2 * block} or more frames, got {frames}")
    return frames // block * block


def _clips(options: argparse.Namespace) -> dict[str, Tensor]:
    """Frames (T, 3, H, W) of every clip, 0 to 1, as many whole blocks as it has and as are wanted.

    Raises:
        ValueError: a clip has too few, or too few are wanted.
    """
    count = whole_blocks(options.frames)
    found = {}
    for path in sorted(options.clips.glob("*.mp4"))[: options.limit]:
        frames = decode(path, _SIZE, count)
        found[path.stem] = frames[: whole_blocks(len(frames))].to(options.device).float() / 255
    return found


def main() -> None:
    """Print the tables for a model folder."""
    options = _options()
    try:
        clips = _clips(options)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    model = Model(options.model, torch.device(options.device), parts=not options.autoencoder_only)
    schedules = [[float(s) for s in one.split(",")] for one in options.schedules]
    if options.faults:
        fault_table(model, clips, options.styles, schedules[0])
        return
    reconstruction_table(model, clips)
    if not options.autoencoder_only:
        edit_table(model, clips, options.styles, schedules, options.sdedit, options.sheets)


if __name__ == "__main__":
    main()
