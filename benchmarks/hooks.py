"""Stock diffusers pipelines with `stillframe.hooks`: seconds and memory by the share computed.

Random weights of the published shapes, random prompts, latents in and latents out: what is measured
is denoising, step by step, without the autoencoder and the text encoder (both are tiny here). The
masks are random, with one frame computed whole.

Run as ``python -m benchmarks.hooks [--models 1.3b 14b ti2v vace] [--shares 0.25 0.5 0.75]``; with
``--device cpu --layers 2 --width 64 --height 32 --frames 9`` it runs anywhere.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)

from benchmarks import say
from stillframe import hooks
from stillframe.backbones.meter import typed
from stillframe.loading.random_model import SHAPES

Shape = dict[str, Any]

#: What ``--models`` takes.
MODELS: dict[str, Shape] = {
    "1.3b": SHAPES["1.3b"],
    "14b": SHAPES["14b"],
    "ti2v": {
        **SHAPES["1.3b"],
        "num_attention_heads": 24,
        "ffn_dim": 14336,
        "in_channels": 48,
        "out_channels": 48,
    },
    "vace": {**SHAPES["1.3b"], "vace_layers": [*range(0, 30, 2)], "vace_in_channels": 96},
}


class Row(NamedTuple):
    """One way of running a model.

    Attributes:
        kept: share of tokens computed, 1 where nothing is applied.
        step_s: seconds of a denoising step, both branches of guidance: the least of all but the
            first.
        clip_s: of so many steps as a clip takes.
        peak_gb: torch's peak of memory, weights included; 0 on a CPU.
    """

    model: str
    standin: str
    kept: float
    step_s: float
    clip_s: float
    peak_gb: float


def pipeline(name: str, layers: int | None, device: str, dtype: torch.dtype) -> Any:
    """A pipeline with random weights."""
    torch.manual_seed(0)
    shape = {**MODELS[name], **({"num_layers": layers} if layers else {})}
    if "vace_layers" in shape:
        shape["vace_layers"] = [n for n in shape["vace_layers"] if n < shape["num_layers"]]
    channels = shape["in_channels"]
    with torch.device(device):
        kind = WanVACETransformer3DModel if name == "vace" else WanTransformer3DModel
        transformer = typed(kind(**shape), dtype).eval().requires_grad_(False)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=channels,
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
            scale_factor_spatial=16 if name == "ti2v" else 8,
        )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    kinds = {"vace": WanVACEPipeline, "ti2v": WanPipeline}
    more = {"expand_timesteps": True} if name == "ti2v" else {}
    pipe = kinds.get(name, WanVideoToVideoPipeline)(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def steps_of(name: str, pipe: Any, options: argparse.Namespace) -> list[float]:
    """Seconds of every step of a call, guidance on."""
    device, dtype = options.device, pipe.transformer.dtype
    geometry = hooks.find_family(pipe).geometry(pipe)
    generator = torch.Generator(device).manual_seed(0)
    text = torch.randn(2, 1, 512, 4096, generator=generator, device=device, dtype=dtype)
    side = geometry.pixels // geometry.patch
    size = geometry.length(options.frames), options.height // side, options.width // side
    channels = pipe.vae.config.z_dim
    times = [0.0]

    def ended(*given: Any) -> dict[str, Any]:
        times.append(now(device))
        return {}

    call: dict[str, Any] = {
        "prompt_embeds": text[0],
        "negative_prompt_embeds": text[1],
        "height": options.height,
        "width": options.width,
        "num_inference_steps": options.steps,
        "guidance_scale": 5.0,
        "latents": torch.randn(1, channels, *size, generator=generator, device=device),
        "output_type": "latent",
        "callback_on_step_end": ended,
    }
    if name in ("1.3b", "14b"):
        call["strength"] = 1.0
    else:
        call["num_frames"] = options.frames
    times[0] = now(device)
    pipe(**call)
    return [after - before for before, after in itertools.pairwise(times)]


def now(device: str) -> float:
    """The time when all that was asked of a device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, pipe: Any, kept: float, standin: str, options: argparse.Namespace) -> Row:
    """One way of running a model; ``kept`` 1 is the stock pipeline."""
    geometry = hooks.find_family(pipe).geometry(pipe)
    places = options.height // geometry.pixels, options.width // geometry.pixels
    frames = geometry.length(options.frames)
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(frames, *places, dtype=torch.bool)
    mask[0] = True
    others = torch.randperm((frames - 1) * mask[0].numel(), generator=generator)
    mask[1:].view(-1)[others[: max(0, round(kept * mask.numel()) - mask[0].numel())]] = True
    run: Callable[[], list[float]] = lambda: steps_of(name, pipe, options)  # noqa: E731
    if options.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if kept == 1:
        seconds, share = run(), 1.0
    else:
        with hooks.apply(pipe, mask=mask, standin=standin) as session:
            seconds, share = run(), session.kept_share
    peak = torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else 0.0
    step = min(seconds[1:] or seconds)
    row = Row(name, "-" if kept == 1 else standin, share, step, step * options.clip_steps, peak)
    say(
        f"{name:5} {row.standin:10} {share:6.1%} {step:8.3f} s a step "
        f"{row.clip_s:8.1f} s a clip {peak:6.2f} GB"
    )
    return row


def linearity(rows: list[Row]) -> float:
    """Pearson's r between the share computed and the seconds."""
    pairs = torch.tensor([[row.kept, row.step_s] for row in rows], dtype=torch.float64)
    return float(torch.corrcoef(pairs.T)[0, 1])


def main() -> None:
    """Print a row for each way of running, and one JSON line."""
    parser = argparse.ArgumentParser(description="Time stock pipelines by the share computed.")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--standins", nargs="+", default=["neighbour"], choices=[*hooks.standins])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--steps", type=int, default=3, help="steps that are run")
    parser.add_argument("--clip-steps", type=int, default=50, help="steps that a clip takes")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    rows, found = [], []
    for name in options.models:
        pipe = pipeline(name, options.layers, options.device, dtype)
        steps_of(name, pipe, argparse.Namespace(**{**vars(options), "steps": 1}))  # warms up
        dense = measure(name, pipe, 1.0, "-", options)
        for standin in options.standins:
            ours = [measure(name, pipe, kept, standin, options) for kept in options.shares]
            fit = linearity([*ours, dense])
            gain = [dense.step_s / row.step_s * row.kept for row in ours]
            say(
                f"{name:5} {standin:10} gain x kept {min(gain):.2f} to {max(gain):.2f}, r {fit:.4f}"
            )
            found.append({"model": name, "standin": standin, "r": fit, "gain_times_kept": gain})
            rows += ours
        rows.append(dense)
        del pipe
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    listed = [row._asdict() for row in rows]
    say(json.dumps({"device": device, "found": found, "rows": listed}))


if __name__ == "__main__":
    main()
