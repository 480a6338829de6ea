"""What commands have in common: options that mean the same everywhere, and loading the model.

torch is imported when a model is loaded. It does not know what a command does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.downloads import fetch_shown

if TYPE_CHECKING:
    from stillframe.loading.assemble import Task
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "MOST_FRAMES",
    "AttentionOption",
    "CrfOption",
    "DeviceOption",
    "DtypeOption",
    "ExecutionOption",
    "HeightOption",
    "LoadOptions",
    "LoraOption",
    "ModelOption",
    "OffloadOption",
    "OutOption",
    "ProductsOption",
    "QuietOption",
    "ReportOption",
    "SeedOption",
    "SigmasOption",
    "StepsOption",
    "StoreOption",
    "ThreadsOption",
    "VaeOption",
    "WidthOption",
    "load",
    "number",
    "parse_sigmas",
]

#: Of frames of a video, a number that no video reaches.
MOST_FRAMES = 10**9
#: What a generator of noise takes.
MOST_SEED = 2**63 - 1


def number(*names: str, least: float = 0, most: float, **more: Any) -> Any:
    """An option that is a finite number within bounds, both allowed; ``typer.Option`` otherwise."""
    return typer.Option(*names, min=least, max=most, callback=_finite, **more)


def _finite(value: float | None) -> float | None:
    # typer compares with the bounds only, and nan is not outside of any
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number.")
    return value


OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The video to write.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="A name of `stillframe models`, a folder, or a hub id.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising passes a block.")]
SigmasOption = Annotated[str | None, typer.Option(help="Explicit noise levels, falling: 1.0,0.6")]
SeedOption = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the noise.")]
HeightOption = Annotated[
    int | None, typer.Option(min=1, max=16384, help="Of the output, in pixels.")
]
WidthOption = Annotated[
    int | None, typer.Option(min=1, max=16384, help="Of the output, in pixels.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
VaeOption = Annotated[
    str | None,
    typer.Option(help="tiny or full autoencoder, or a weight file of the tiny one."),
]
LoraOption = Annotated[
    list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="Merge a LoRA; may be repeated.")
]
StoreOption = Annotated[
    str, typer.Option(help="What recovery stores in: exact, fp8, or auto (fp8 in 16 bits).")
]
ExecutionOption = Annotated[
    str, typer.Option(help="auto; or passes as CUDA graphs, lean, or stock: graphs, lean, stock.")
]
ProductsOption = Annotated[
    str, typer.Option(help="Matrix products: exact, or fp8 (Hopper and later).")
]
AttentionOption = Annotated[str | None, typer.Option(help="One of diffusers' attention backends.")]
OffloadOption = Annotated[
    bool, typer.Option("--offload", help="Keep the weights on the CPU, bring them layer by layer.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")]
CrfOption = Annotated[int, typer.Option(min=0, max=51, help="Quality, 0 is lossless.")]
ReportOption = Annotated[Path | None, typer.Option(help="Write all numbers as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]


@dataclass(frozen=True)
class LoadOptions:
    """Which model, and how to load it: the values of the options of those names."""

    model: str = "tiny"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    vae: str | None = None
    loras: tuple[str, ...] = ()
    attention: str | None = None
    offload: bool = False
    height: int | None = None
    width: int | None = None
    recovery: str = "aligned"
    compare: bool = False
    generate: bool = False
    prompt: str | None = None
    store: str = "auto"


def load(options: LoadOptions) -> CausalWanPipeline:
    """The model, in a process tuned for it.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ValueError: an option is out of range.
    """
    from stillframe.loading.host import keep_freed_memory
    from stillframe.loading.load import load_pipeline, missing_files, pick_device

    if missing := missing_files(options.model, options.vae):
        fetch_shown(missing)
    if pick_device(options.device).type == "cpu":
        keep_freed_memory()
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    return load_pipeline(
        options.model,
        device=options.device,
        dtype=options.dtype,
        vae=options.vae,
        loras=options.loras,
        attention=options.attention,
        offload=options.offload,
        task=_task(options),
    )


def _task(options: LoadOptions) -> Task:
    """What memory is planned for: the size that was asked for, in whole tokens of any model."""
    from stillframe.loading.assemble import Task

    height = options.height or (480 if options.width is None else options.width * 9 // 16)
    width = options.width or height * 16 // 9
    tall, wide = (max(side // 32, 1) * 32 for side in (height, width))
    prompts = () if options.prompt is None else (options.prompt,)
    return Task(
        tall, wide, options.recovery, options.compare, options.generate, prompts, options.store
    )


def parse_sigmas(text: str | None) -> tuple[float, ...] | None:
    """Noise levels as they are typed: numbers and commas; None stays None.

    Raises:
        ValueError: it is something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--sigmas takes numbers such as 1.0,0.6, got {text!r}") from error
