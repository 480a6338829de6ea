"""Stand-ins of `stillframe.hooks`, layer by layer: how far self-attention at the computed tokens is
from dense.

There is no trained bidirectional model here, so the bundled one is run as one: a stock forward over
the first block of a clip, in which its attention is bidirectional as it was trained. One pass at a
noise level; for the stand-in "refresh", one at an earlier step before it. The floor is the dense
pass in which the pruned tokens' noise is another draw: no stand-in can be told from less than that.

Run as ``python -m benchmarks.hooks_standins CLIP... [--tolerance 3]``; prints a table (means over
layers and clips), then one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from benchmarks import say
from stillframe import hooks
from stillframe.evaluation.latents import encode
from stillframe.evaluation.layers import relative_error
from stillframe.evaluation.sources import find_clips
from stillframe.loading.load import load_pipeline

_SIGMAS = (0.95, 0.77, 0.4, 0.1)
_STEPS = 25  # of a schedule with shift 5, for the distance between a whole pass and the next ones


class Probe:
    """A pipeline of one denoising pass, so that hooks can be applied to it."""

    def __init__(self, pipe: Any) -> None:
        self.transformer = pipe.transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self.vae_scale_factor_temporal, self.vae_scale_factor_spatial = 4, 8
        self.config = SimpleNamespace()
        self.clean = torch.empty(0)
        self._execution_device = pipe.compute_device

    def __call__(self, passes: list[tuple[Tensor, float]], text: Tensor) -> Tensor:
        """The last of some passes: latents (1, C, F, H, W) and their sigma."""
        for number, (latents, sigma) in enumerate(passes):
            self._current_timestep = number
            self.scheduler.set_timesteps(sigmas=[sigma])
            self.scheduler.set_begin_index(0)
            shown = torch.cat([latents, torch.zeros_like(latents)], 1)
            time = torch.full((1,), 1000 * sigma)
            out: Tensor = self.transformer(
                hidden_states=shown, timestep=time, encoder_hidden_states=text, return_dict=False
            )[0]
        return out


@contextmanager
def outputs_of(transformer: Any) -> Iterator[list[Tensor]]:
    """Outputs of self-attention, layer after layer, of the last pass."""
    seen: list[Tensor] = []

    def look(module: Any, given: Any, out: Tensor) -> None:
        if len(seen) == len(transformer.blocks):
            seen.clear()
        seen.append(out)

    handles = [block.attn1.register_forward_hook(look) for block in transformer.blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def earlier(sigma: float, steps: int) -> float:
    """The noise level so many steps before one."""
    u = sigma / (5 - 4 * sigma) + steps / _STEPS
    return min(5 * u / (1 + 4 * u), 1.0)


@torch.inference_mode()
def errors(pipe: Any, frames: Any, text: Tensor, tolerance: float) -> dict[str, Any] | None:
    """Relative errors by noise level and stand-in; None: nothing is pruned."""
    latents = encode(pipe, frames)
    clean, count = latents.blocks[0], latents.timeline.first_frames
    video = torch.from_numpy(np.array(frames[:count])).movedim(-1, 1) / 255
    probe = Probe(pipe)
    generator = torch.Generator().manual_seed(0)
    noise, other = torch.randn(2, *clean.shape, generator=generator)
    with hooks.apply(probe, video=video, tolerance=tolerance) as session:
        plan = session.plan
    assert plan is not None
    if plan.everything:
        return None
    again = (~plan.keep).repeat_interleave(2, 1).repeat_interleave(2, 2)
    redrawn = torch.where(again, other, noise)
    found: dict[str, Any] = {"kept": plan.kept_share}
    with outputs_of(pipe.transformer) as seen:
        for sigma in _SIGMAS:
            at = {
                s: (1 - s) * clean + s * noise
                for s in (sigma, earlier(sigma, 1), earlier(sigma, 4))
            }
            probe([(at[sigma], sigma)], text)
            dense = [x[:, plan.kept] for x in seen]
            probe([((1 - sigma) * clean + sigma * redrawn, sigma)], text)
            floor = [x[:, plan.kept] for x in seen]
            found[f"{sigma} floor"] = mean(map(relative_error, floor, dense))
            for name, standin, steps in _RUNS:
                passes = [(at[s], s) for s in [earlier(sigma, steps)] if steps] + [
                    (at[sigma], sigma)
                ]
                stands = standin(latents=clean) if name == "source" else standin()
                with hooks.apply(probe, video=video, tolerance=tolerance, standin=stands):
                    probe(passes, text)
                found[f"{sigma} {name}"] = mean(map(relative_error, seen, dense))
    return found


_RUNS: list[tuple[str, Any, int]] = [
    ("none", hooks.standins["none"], 0),
    ("copy", hooks.standins["copy"], 0),
    ("source", hooks.Source, 0),
    ("refresh, 1 step old", lambda: hooks.Refresh(first=1, every=100), 1),
    ("refresh, 4 steps old", lambda: hooks.Refresh(first=1, every=100), 4),
    ("neighbour", hooks.Neighbour, 0),
]


def main() -> None:
    """Print errors by noise level and stand-in, and one JSON line."""
    parser = argparse.ArgumentParser(description="Compare stand-ins with dense, layer by layer.")
    parser.add_argument("clips", nargs="+", type=Path, help="videos or folders")
    parser.add_argument("--tolerance", type=float, default=3.0, help="grey levels")
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--height", type=int, default=240)
    options = parser.parse_args()
    pipe = load_pipeline("tiny", device="cpu", dtype="float32")
    text = pipe.encode_prompt(options.prompt)
    rows = []
    for clip in find_clips([str(path) for path in options.clips]):
        frames = fitted(np.stack([*islice(clip.frames(), 24)]), options.height)
        row = errors(pipe, frames, text, options.tolerance)
        if row is not None:
            rows.append({"clip": clip.name, **row})
    if not rows:
        raise SystemExit("nothing of these clips is pruned at this tolerance")
    names = ["floor", *(name for name, _, _ in _RUNS)]
    say(f"{len(rows)} clips, {mean(row['kept'] for row in rows):.0%} kept")
    say(f"{'sigma':>6} " + " ".join(f"{name:>20}" for name in names))
    for sigma in _SIGMAS:
        cells = (mean(row[f"{sigma} {name}"] for row in rows) for name in names)
        say(f"{sigma:6} " + " ".join(f"{cell:20.3f}" for cell in cells))
    say(json.dumps({"device": "cpu", "rows": rows}))


def fitted(frames: Any, height: int) -> Any:
    """Frames (T, H, W, 3) at a height, both sides multiples of 16."""
    width = round(frames.shape[2] / frames.shape[1] * height / 16) * 16
    pixels = torch.from_numpy(frames).movedim(-1, 1).float()
    small = torch.nn.functional.interpolate(
        pixels, (height // 16 * 16, width), mode="bilinear", antialias=True
    )
    return small.round().clamp(0, 255).byte().movedim(1, -1).numpy()


if __name__ == "__main__":
    main()
