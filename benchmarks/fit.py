"""An edit of a published model's size in so much memory as a card has: planned, then measured.

Everything has random weights: the transformer of a recipe's shape, its autoencoder and its text
encoder, made on the CPU as a file would be read there. The process may have no more of the card
than asked for (``torch.cuda.set_per_process_memory_fraction``). A prompt is encoded, then blocks of
random frames are edited, by what ``--fit`` has chosen. Prints the plan and what was measured, and
one JSON line.

Run as ``python -m benchmarks.fit --model krea-14b --fit 24`` on a GPU; needs as much memory on the
CPU as the transformer has in bfloat16. Without a GPU: ``--model tiny --device cpu --fit 2``.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks import say
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.meter import META, typed
from stillframe.backbones.wan import empty_transformer
from stillframe.jobs.bench import Share, device_name
from stillframe.loading.adapt import save_memory
from stillframe.loading.assemble import Source, Task, autoencoder_config, stream_settings
from stillframe.loading.fit import GB, Fit, find_fit
from stillframe.loading.load import find_source, pick_device, pick_dtype
from stillframe.pipelines.causal_wan import CausalWanPipeline

_NUMBERS = 2**22


def filled(model: nn.Module) -> nn.Module:
    """A model of the meta device on the CPU, its weights random: the same numbers again and again,
    since drawing billions takes minutes."""
    drawn = 0.02 * torch.randn(_NUMBERS, generator=torch.Generator().manual_seed(0))
    known: dict[int, Tensor] = {}

    def made(name: str, x: Tensor) -> Tensor:
        if id(x) not in known:
            if "norm" in name and x.ndim == 1:
                known[id(x)] = torch.ones(x.shape, dtype=x.dtype)
            else:
                whole = torch.empty(x.numel(), dtype=x.dtype)
                for part in whole.split(_NUMBERS):
                    part.copy_(drawn[: len(part)])
                known[id(x)] = whole.view(x.shape)
        return known[id(x)]

    state = {name: made(name, x) for name, x in model.named_parameters(remove_duplicate=False)}
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)


class Meter:
    """Seconds and memory of a part of the run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wait()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self.start = time.perf_counter()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self) -> float:
        """Since the start."""
        self.wait()
        return time.perf_counter() - self.start

    def peaks(self) -> dict[str, float | None]:
        """GB since the start; None where there is no card."""
        if self.device.type != "cuda":
            return {"allocated_gb": None, "reserved_gb": None}
        return {
            "allocated_gb": torch.cuda.max_memory_allocated(self.device) / GB,
            "reserved_gb": torch.cuda.max_memory_reserved(self.device) / GB,
        }


@torch.inference_mode()
def encoded(
    source: Source, dtype: torch.dtype, length: int, device: torch.device, fit: Fit
) -> tuple[Tensor, dict[str, Any]]:
    """A prompt through a text encoder of the model's shape, and what that took."""
    config = UMT5Config(**source.config("text_encoder"))
    with META:
        model = UMT5EncoderModel(config)
    # all of it: transformers keeps none of it in float32 when it loads bfloat16
    filled(model.to(dtype))
    model.tie_weights()  # or the embedding would be moved twice
    where = torch.device("cpu") if fit.text_on_cpu else device
    ids = torch.randint(2, config.vocab_size, (1, length))
    meter = Meter(device)
    model.to(where)
    moved = meter.seconds()
    embeds = model(ids.to(where), torch.ones_like(ids).to(where)).last_hidden_state.cpu()
    took = {"on": str(where), "moving_s": moved, "encoding_s": meter.seconds() - moved}
    return embeds, {**took, **meter.peaks()}


def pipeline(
    source: Source, dtype: torch.dtype, device: torch.device, fit: Fit
) -> CausalWanPipeline:
    """The model as it is loaded to fit, with random weights."""
    settings = stream_settings(source, Task())
    config, kind = autoencoder_config(source)
    with META:
        family = TinyVideoAutoencoder if kind == "tiny" else AutoencoderKLWan
        vae = typed(family.from_config({k: v for k, v in config.items() if k[0] != "_"}), dtype)
    pipe = CausalWanPipeline(
        None,
        None,
        filled(typed(empty_transformer(source.config("transformer")), dtype)),
        filled(vae),
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        block_frames=settings.block_frames,
        sink_frames=settings.sink_frames,
        window_frames=settings.window_frames,
        position_limit=settings.position_limit,
        edit_sigmas=settings.sigmas,
    )
    save_memory(pipe, fit.task, device)
    return pipe.to(device)


def edited(pipe: CausalWanPipeline, embeds: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Blocks from frames to frames: until all is warm, then for the clock."""
    device = pipe.compute_device
    size = pipe.timeline.later_frames, 3, options.height, options.width
    frames = torch.randint(0, 256, (1, *size), dtype=torch.uint8).to(device)
    stream = pipe.stream(
        prompt_embeds=embeds.to(device, pipe.transformer.dtype),
        method=Share(share=options.kept),
        generator=torch.Generator().manual_seed(0),
        execution=options.execution,
    )

    def block() -> None:
        stream.push(frames.to(pipe.vae.dtype) / 255)

    first = Meter(device)
    for _ in range(options.warm):
        block()
    warm = first.seconds()
    meter, start = first, time.perf_counter()
    for _ in range(options.blocks):
        block()
    meter.wait()
    seconds = (time.perf_counter() - start) / options.blocks
    return {
        "warm_s": warm,
        "block_s": seconds,
        "fps": size[0] / seconds,
        "graphs": stream.graphs,
        **meter.peaks(),
    }


def main() -> None:
    """Plan, then encode a prompt and edit blocks in no more memory than that."""
    parser = argparse.ArgumentParser(description="Edit in so much memory as a card has.")
    parser.add_argument("--model", default="self-forcing", help="a recipe, or tiny")
    parser.add_argument("--vae", choices=["tiny", "full"])
    parser.add_argument("--fit", type=float, required=True, help="GB, of 10^9 bytes")
    parser.add_argument("--cap", type=float, help="GB that the process may have; by default as fit")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--kept", type=float, default=0.68, help="share of tokens computed")
    parser.add_argument("--warm", type=int, default=10, help="blocks before the clock starts")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--no-text", action="store_true", help="leave the text encoder out")
    options = parser.parse_args()
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    source = find_source(options.model, options.vae)
    task = Task(options.height, options.width)
    fit = find_fit(source, dtype, task, device, int(options.fit * GB))
    for line in fit.lines():
        say(line)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        cap = (options.cap or options.fit) * GB
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(cap / total, 1.0), index)
    width = source.config("transformer")["text_dim"]
    embeds, text = torch.randn(1, 512, width), None
    if not options.no_text:
        embeds, text = encoded(source, dtype, 512, device, fit)
        say(f"text: {rounded(text)}")
    made = Meter(device)
    pipe = pipeline(source, dtype, device, fit)
    loading = {"loading_s": made.seconds(), **made.peaks()}
    say(f"loading, random weights made: {rounded(loading)}")
    edit = edited(pipe, embeds, options)
    say(f"edit: {rounded(edit)}")
    found = {
        "device": device_name(device),
        "model": options.model,
        "size": [options.width, options.height],
        "kept": options.kept,
        "fit_gb": options.fit,
        "planned_gb": fit.peak / GB,
        "planned_editing_gb": fit.plan.editing / GB,
        "measures": list(fit.measures),
        "text": text,
        "loading": loading,
        "edit": edit,
    }
    say(json.dumps(found))


def rounded(row: dict[str, Any]) -> str:
    """A row to be read."""
    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


if __name__ == "__main__":
    main()
