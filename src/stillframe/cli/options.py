"""Options that several commands have, as data, and loading the model that they name.

torch is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stillframe.cli.downloads import fetch_shown
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "FRAMES",
    "HARDWARE",
    "LOADING",
    "MODEL",
    "OFFLOAD",
    "OUTPUT",
    "QUIET",
    "RESULT",
    "SIDE",
    "SIZE",
    "VAE",
    "load",
    "part",
]

_T = TypeVar("_T")

#: Headings in help.
_LOADING, RESULT = "Model and device", "Source and result"

#: Longest side of a picture, in pixels, and most frames that anybody asks for.
SIDE, FRAMES = 16384, 10**9

MODEL = {
    "model": Option(
        "str",
        "Load this model: a name of `stillframe models`, a folder, or a hub id.",
        default="tiny",
        metavar="NAME",
    )
}
HARDWARE = {
    "device": Option(
        "str",
        "Compute on this device: auto, cpu, cuda, cuda:1, ...",
        default="auto",
        metavar="NAME",
        group=_LOADING,
    ),
    "dtype": Option(
        "str",
        "Load weights in this format; auto is bfloat16 on a GPU and float32 elsewhere.",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        group=_LOADING,
    ),
    "threads": Option(
        "int", "Use so many CPU threads.", metavar="N", least=1, most=1024, group=_LOADING
    ),
}
VAE = {
    "vae": Option(
        "str",
        "Use the tiny or the full autoencoder, or a weight file of the tiny one.",
        metavar="tiny|full|FILE",
        group=_LOADING,
    )
}
OFFLOAD = {
    "offload": Option(
        "bool",
        "Keep weights on the CPU and bring them to the device layer by layer.",
        default=False,
        group=_LOADING,
    )
}
#: How a model is loaded.
LOADING = {
    **HARDWARE,
    **VAE,
    "lora": Option(
        "str",
        "Merge a LoRA into the model; may be given several times.",
        metavar="FILE[:SCALE]",
        repeats=True,
        group=_LOADING,
    ),
    "attention": Option(
        "str",
        "Compute attention with one of diffusers' backends.",
        metavar="NAME",
        group=_LOADING,
    ),
    **OFFLOAD,
}
SIZE = {
    "height": Option(
        "int", "Make the result so many pixels high.", metavar="PIXELS", least=1, most=SIDE
    ),
    "width": Option(
        "int",
        "Make the result so many pixels wide.",
        metavar="PIXELS",
        least=1,
        most=SIDE,
        group=RESULT,
    ),
}
OUTPUT = {
    "crf": Option(
        "int",
        "Encode with this quality, from 0 (lossless) to 51.",
        default=18,
        metavar="N",
        least=0,
        most=51,
        group=RESULT,
    ),
    "report": Option("path", "Write all numbers as JSON.", metavar="FILE", group=RESULT),
}
QUIET = {
    "quiet": Option("bool", "Print only warnings and errors.", default=False, short="q"),
}


def part(options: Mapping[str, _T], names: Sequence[str]) -> dict[str, _T]:
    """Some options, or values, in the order of the names."""
    return {name: options[name] for name in names}


def load(
    given: Mapping[str, Any],
    *,
    recovery: str = "aligned",
    compare: bool = False,
    generate: bool = False,
    prompt: str | None = None,
) -> CausalWanPipeline:
    """The model, in a process tuned for it.

    Args:
        given: values of `MODEL`, `LOADING`, `SIZE` and the option store; those that are missing
            are as usual.
        recovery, compare, generate, prompt: what memory is planned for.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ValueError: an option is out of range.
    """
    from stillframe.loading.host import keep_freed_memory
    from stillframe.loading.load import load_pipeline, missing_files, pick_device

    model, device, vae = given["model"], given.get("device", "auto"), given.get("vae")
    if missing := missing_files(model, vae):
        fetch_shown(missing)
    if pick_device(device).type == "cpu":
        keep_freed_memory()
    if given.get("threads") is not None:
        import torch

        torch.set_num_threads(given["threads"])
    from stillframe.loading.assemble import Task

    prompts = () if prompt is None else (prompt,)
    store, motion = given.get("store", "auto"), given.get("motion") != "off"
    return load_pipeline(
        model,
        device=device,
        dtype=given.get("dtype", "auto"),
        vae=vae,
        loras=tuple(given.get("lora") or ()),
        attention=given.get("attention"),
        offload=given.get("offload", False),
        task=Task(*_size(given), recovery, compare, generate, prompts, store, motion),
    )


def _size(given: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that were asked for, in whole tokens of any model."""
    height, width = given.get("height"), given.get("width")
    height = height or (480 if width is None else width * 9 // 16)
    width = width or height * 16 // 9
    return max(height // 32, 1) * 32, max(width // 32, 1) * 32
