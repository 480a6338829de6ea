"""What pruning a stock, bidirectional pipeline leaves different: pictures, and layer by layer.

diffusers' own video-to-video pipeline edits clips with the sibling of the bundled model that
``training.bidirectional`` trains: dense, with another seed, and pruned with every stand-in for keys
and values. Prints, of 16x16 patches, the 99th percentile of the difference from the dense edit over
that of the other seed; and, of the first step, the relative error of self-attention's output at
computed tokens, mean over layers. Beside it stands the floor: the same tokens, with the noise of
the pruned ones drawn anew.

Run as ``python -m benchmarks.hooks_quality --transformer RUNS/bidirectional CLIP...``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from torch import Tensor

from benchmarks import say
from benchmarks.live import read_clip
from stillframe import hooks
from stillframe.hooks.families.wan import Wan
from stillframe.hooks.pruning import Geometry
from stillframe.loading.load import load_pipeline

_PATCH = 16


class Sibling(WanTransformer3DModel):
    """The bundled model's sibling, by a name of its own: its autoencoder cuts time otherwise."""


class SiblingFamily(Wan):
    """Wan behind the tiny autoencoder, whose first latent frame has as many pictures as others."""

    transformers = ("Sibling",)

    def geometry(self, pipe: Any) -> Geometry:
        return Geometry(temporal=4, single=False, pixels=_PATCH, patch=2)

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        latents: Tensor = pipe.tiny.encode((video.transpose(1, 2) + 1) / 2)
        return latents


class Editor:
    """Edits one clip.

    Args:
        pipe: the stock pipeline.
        bundled: has the autoencoder and the text encoder.
        frames: (T, H, W, 3) uint8.
        options: of the command line.
    """

    def __init__(self, pipe: Any, bundled: Any, frames: Any, options: argparse.Namespace) -> None:
        self.pipe, self._bundled, self._options = pipe, bundled, options
        self.video = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        self.source: Tensor = bundled.vae.encode(self.video.unsqueeze(0))
        self._embeds = bundled.encode_prompt(options.prompt)
        pipe.scheduler.set_timesteps(options.steps)
        skipped = options.steps - int(options.steps * options.strength)
        self.sigma = float(pipe.scheduler.sigmas[skipped])

    def noised(self, seed: int) -> Tensor:
        """Latents of the source at the first noise level."""
        noise = torch.randn(self.source.shape, generator=torch.Generator().manual_seed(seed))
        return self.source.lerp(noise, self.sigma)

    def edit(self, seed: int = 0) -> Tensor:
        """The edited clip (T, 3, H, W) in grey levels."""
        shown: Tensor = self._bundled.vae.decode(self._run(self.noised(seed)))
        return shown[0].clamp(0, 1) * 255

    def attended(self, latents: Tensor) -> list[Tensor]:
        """Self-attention's output of every layer in the first step, (n, D) each."""
        seen: list[Tensor] = []
        handles = [
            block.attn1.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
            for block in self.pipe.transformer.blocks
        ]

        def stop(pipe: Any, *_: Any) -> dict[str, Any]:
            pipe._interrupt = True
            return {}

        try:
            self._run(latents, callback_on_step_end=stop)
        finally:
            for handle in handles:
                handle.remove()
        # a stand-in may have had a pass of its own before
        return seen[-len(handles) :]

    def _run(self, latents: Tensor, **how: Any) -> Tensor:
        height, width = self.video.shape[2:]
        made: Tensor = self.pipe(
            video=None,
            latents=latents,
            prompt_embeds=self._embeds,
            height=height,
            width=width,
            num_inference_steps=self._options.steps,
            strength=self._options.strength,
            guidance_scale=1.0,
            output_type="latent",
            **how,
        ).frames
        return made


def apart(one: Tensor, other: Tensor) -> dict[str, float]:
    """Percentiles of the root mean square difference of 16x16 patches."""
    square = (one - other).square().mean(1, keepdim=True)
    patches = torch.nn.functional.avg_pool2d(square, _PATCH).sqrt().flatten().numpy()
    return {f"p{q:g}": float(np.percentile(patches, q)) for q in (50, 99, 99.9)}


def error(found: list[Tensor], expected: list[Tensor], kept: Tensor) -> float:
    """Relative error at computed tokens, of passes over all tokens or these; mean over layers."""
    parts = [
        [x if len(x) == len(kept) else x.index_select(0, kept) for x in layers]
        for layers in (found, expected)
    ]
    return mean(float((a - b).norm() / b.norm()) for a, b in zip(*parts, strict=True))


def redrawn(editor: Editor, keep: Tensor) -> Tensor:
    """Latents with the noise of pruned tokens (F, h, w) drawn anew."""
    keep = keep.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return torch.where(keep, editor.noised(0), editor.noised(7))


@torch.no_grad()
def measure(editor: Editor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every stand-in."""
    dense, attended = editor.edit(), editor.attended(editor.noised(0))
    seed = apart(editor.edit(1), dense)
    rows = []
    for name in options.standins:
        with hooks.apply(editor.pipe, editor.video, standin=name) as session:
            edited = editor.edit()
            held = hooks.hold(edited, session)
            row: dict[str, Any] = {"standin": name, "kept": session.kept_share}
            assert session.plan is not None
            keep, kept = session.plan.keep, session.plan.kept
            row["layers"] = error(editor.attended(editor.noised(0)), attended, kept)
        row["floor"] = error(editor.attended(redrawn(editor, keep)), attended, kept)
        row |= {"edit": apart(edited, dense), "held": apart(held, dense), "seed": seed}
        row["ratio"] = row["edit"]["p99"] / seed["p99"]
        rows.append(row)
    return rows


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The stock pipeline with the sibling, and the bundled one."""
    hooks.register(SiblingFamily)
    bundled: Any = load_pipeline("tiny")
    transformer: Any = Sibling.from_pretrained(options.transformer)
    pipe: Any = WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer.float().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.tiny = bundled.vae
    return pipe, bundled


def main() -> None:
    """Print a line a clip and stand-in, and JSON."""
    parser = argparse.ArgumentParser(description="What pruning a stock pipeline leaves different.")
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--standins", nargs="+", default=[*hooks.standins])
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", default="416x240")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    pipe, bundled = load(options)
    told = []
    for clip in options.clips:
        frames = read_clip(clip, width, height, options.frames)
        editor = Editor(pipe, bundled, frames, options)
        for row in measure(editor, options):
            say(
                f"{clip.stem:18s} {row['standin']:10s} computed {row['kept']:.0%}  p99 "
                f"{row['edit']['p99']:.1f} (held {row['held']['p99']:.1f}, seed "
                f"{row['seed']['p99']:.1f})  ratio {row['ratio']:.2f}  layers {row['layers']:.3f} "
                f"(floor {row['floor']:.3f})"
            )
            told.append({"clip": clip.stem, **row})
    say(json.dumps(told))


if __name__ == "__main__":
    main()
