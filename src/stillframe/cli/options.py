"""Options that several commands have, as data, and loading the model that they name.

torch is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from stillframe.cli.downloads import fetch_shown
from stillframe.cli.screen import say
from stillframe.config import edit_options
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "FIT",
    "FRAMES",
    "HARDWARE",
    "LOADING",
    "MODEL",
    "OFFLOAD",
    "OUTPUT",
    "PROMPT",
    "QUIET",
    "RESULT",
    "SIDE",
    "SIZE",
    "STREAM",
    "VAE",
    "YES",
    "live_edits",
    "load",
    "part",
]

_T = TypeVar("_T")

#: Headings in help.
_LOADING, RESULT = "Model and device", "Source and result"
_STREAMS = "Pictures, streams and pipes"

# What needs the whole of a file; so does what reads or writes one.
_FILES_ONLY = ("cuts_by", "two_pass")
_LIVE_DETECTORS = ("pixels", "latent")

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
FIT = {
    "fit": Option(
        "float",
        "Stay below so many GB (10^9 bytes), all included, by the mildest measures that are "
        "enough, and say which.",
        metavar="GB",
        above=0,
        most=10**6,
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
    **FIT,
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
#: How streams are read and written.
STREAM = {
    "input_format": Option(
        "str",
        "Read a stream as this format of FFmpeg's where it cannot be told: y4m, v4l2.",
        metavar="NAME",
        group=_STREAMS,
    ),
    "output_format": Option(
        "str",
        "Write stdout or a URL in this format: y4m, mpegts, matroska or flv.",
        metavar="NAME",
        group=_STREAMS,
    ),
    "input_timeout": Option(
        "float",
        "Give up a URL after so many seconds of silence.",
        default=10.0,
        metavar="SECONDS",
        above=0,
        most=86400,
        group=_STREAMS,
    ),
    "max_pixels": Option(
        "int",
        "Refuse larger pictures: 35389440 pixels (8192x4320) by default.",
        metavar="PIXELS",
        least=256,
        most=2**31 - 1,
        group=_STREAMS,
    ),
    "background": Option(
        "str",
        "Show transparent pictures on this colour.",
        default="black",
        choices=("black", "white"),
        group=_STREAMS,
    ),
}
PROMPT = {
    "prompt": Option("str", "Say what the result should look like.", metavar="TEXT"),
    "style": Option("str", "Use a style of the model: `stillframe styles` lists them."),
}
YES = {
    "yes": Option("bool", "Replace files that are there without asking.", default=False, short="y"),
}
QUIET = {
    "quiet": Option("bool", "Print only warnings and errors.", default=False, short="q"),
}


def part(options: Mapping[str, _T], names: Sequence[str]) -> dict[str, _T]:
    """Some options, or values, in the order of the names."""
    return {name: options[name] for name in names}


def live_edits() -> dict[str, Option]:
    """Options of an edit that need neither a file nor all of a video."""
    found = {
        name: each
        for name, each in edit_options().items()
        if each.kind != "path" and name not in _FILES_ONLY
    }
    return {**found, "detector": replace(found["detector"], choices=_LIVE_DETECTORS)}


def load(
    given: Mapping[str, Any],
    *,
    recovery: str = "aligned",
    compare: bool = False,
    generate: bool = False,
    prompts: Sequence[str] = (),
    frames: tuple[int, int] | None = None,
) -> CausalWanPipeline:
    """The model, in a process tuned for it.

    Args:
        given: values of `MODEL`, `LOADING`, `SIZE` and the options store, cache and motion; those
            that are missing are as usual.
        recovery, compare, generate, prompts: what memory is planned for.
        frames: width and height of the video to edit, where that is known.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ValueError: an option is out of range.
    """
    from stillframe.loading.host import keep_freed_memory
    from stillframe.loading.load import (
        fit_pipeline,
        load_pipeline,
        missing_files,
        pick_device,
        working_size,
    )

    model, device, vae = given["model"], given.get("device", "auto"), given.get("vae")
    if pick_device(device).type == "cpu":
        keep_freed_memory()
    if given.get("threads") is not None:
        import torch

        torch.set_num_threads(given["threads"])
    from stillframe.loading.assemble import Task

    store, motion = given.get("store", "auto"), given.get("motion") != "off"
    dtype, offload = given.get("dtype", "auto"), given.get("offload", False)
    fit = None
    missing = missing_files(model, vae)
    if missing and given.get("fit") is None:
        fetch_shown(missing)
    size = working_size(
        model, vae=vae, frames=frames, height=given.get("height"), width=given.get("width"),
        generate=generate,
    )  # fmt: skip
    task = Task(
        *size,
        recovery,
        compare,
        generate,
        tuple(prompts),
        store,
        motion,
        given.get("cache", "auto"),
    )
    if given.get("fit") is not None:
        fit = fit_pipeline(
            model, given["fit"], device=device, dtype=dtype, vae=vae, task=task, offload=offload
        )
        if not given.get("quiet"):
            for line in fit.lines():
                say(line, stderr=True)
        if missing:
            fetch_shown(missing)
    return load_pipeline(
        model,
        device=device,
        dtype=dtype,
        vae=vae,
        loras=tuple(given.get("lora") or ()),
        attention=given.get("attention"),
        offload=offload,
        task=task,
        fit=fit,
    )
