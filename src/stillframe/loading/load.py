"""Find and load a model: bundled, published (a recipe), a folder, or a repository of the hub.

Importing this file is cheap; torch and diffusers are imported when a model is loaded. It does not
know what a model is used for.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillframe.errors import ModelError
from stillframe.loading.loader_calls import one_sentence, quietly
from stillframe.loading.recipes import load_recipes
from stillframe.loading.styles import Style, load_styles
from stillframe.models import bundled_models

if TYPE_CHECKING:
    import torch

    from stillframe.loading.assemble import Source, Task
    from stillframe.loading.hub import Wanted
    from stillframe.loading.memory import MemoryPlan
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "bundled_models",
    "find_model",
    "find_source",
    "load_pipeline",
    "missing_files",
    "model_styles",
    "pick_device",
    "pick_dtype",
    "plan_pipeline",
]

_INDEX = "model_index.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def find_model(name: str) -> str:
    """What ``from_pretrained`` takes for a model's name: a folder, or a hub id unchanged.

    Args:
        name: a bundled model, a folder in diffusers' format, or ``owner/name`` on the hub. Folders
            win over hub ids.

    Raises:
        ModelError: it is none of these.
    """
    bundled = bundled_models()
    if name in bundled:
        return str(bundled[name])
    folder = Path(name).expanduser()
    if os.path.isdir(folder):
        if not (folder / _INDEX).is_file():
            raise ModelError(f"{name} is not a model: the folder has no {_INDEX}")
        return str(folder)
    if os.path.exists(folder):
        raise ModelError(f"{name} is a file, and a model is a folder in diffusers' format")
    if _HUB_ID.fullmatch(name):
        return name
    known = ", ".join([*bundled, *load_recipes()])
    raise ModelError(
        f"unknown model {name!r}: it is no folder and no hub id (owner/name); known by name are "
        f"{known}"
    )


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" is the GPU if there is one.

    Raises:
        ValueError: torch does not know it, or it is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; known are auto, cpu and cuda") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name!r} is not there: torch sees {count} CUDA devices")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; "auto" is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: it is not one of these.
    """
    import torch

    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known are {', '.join(_DTYPES)}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def find_source(name: str, vae: str | None = None) -> Source:
    """Where the parts of a model come from; see `find_model` for names, bundled ones excluded.

    Args:
        name: of the model.
        vae: "tiny", "full", or a weight file of the tiny autoencoder; None for the folder's own,
            and for a recipe's the tiny one.

    Raises:
        ModelError: there is no such model.
        ValueError: no such autoencoder.
    """
    from stillframe.loading.assemble import Source
    from stillframe.loading.hub import VAES

    if vae is not None and vae not in VAES and not os.path.isfile(Path(vae).expanduser()):
        raise ValueError(
            f"unknown autoencoder {vae!r}: it is {' or '.join(VAES)}, or a weight file"
        )
    recipe = load_recipes().get(name)
    if recipe is not None:
        return Source(name, recipe.base_place, recipe, vae or "tiny")
    return Source(name, find_model(name), None, vae or "full")


def missing_files(name: str, vae: str | None = None) -> tuple[Wanted, ...]:
    """What `load_pipeline` would have to download; empty where everything is on disk.

    Raises:
        ModelError, ValueError: see `find_source`.
    """
    from stillframe.loading.hub import on_disk

    if name in bundled_models() and vae is None:
        return ()
    wanted = find_source(name, vae).wanted
    return () if all(file.present for file in on_disk(wanted)) else wanted


def load_pipeline(
    name: str = "tiny",
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae: str | None = None,
    loras: Sequence[str] = (),
    attention: str | None = None,
    offload: bool = False,
    keep_text: bool = False,
    task: Task | None = None,
) -> CausalWanPipeline:
    """Load a model, ready to edit; downloads what is missing, silently: see `missing_files`.

    Args:
        name: see `find_model`.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "bfloat16" or "float16".
        vae: see `find_source`.
        loras: low-rank updates to merge, ``FILE`` or ``FILE:SCALE`` each.
        attention: one of diffusers' attention backends.
        offload: keep the transformer's weights on the CPU, and bring them layer by layer.
        keep_text: keep the text encoder in memory between prompts (bundled models always do).
        task: what memory is planned for, by default editing at 480x832; what does not fit is
            refused before weights are read. Its prompts are encoded before the rest comes to the
            device.

    Raises:
        ModelError: there is no such model, or it cannot be loaded, driven or held in memory.
        ValueError: no such device, dtype, autoencoder or attention.
    """
    from stillframe.loading.adapt import (
        add_lora,
        check_attention,
        check_offload,
        offload_blocks,
        parse_lora,
        use_attention,
    )

    chosen_device = pick_device(device)
    if attention is not None:
        check_attention(attention)
    if offload:
        check_offload(chosen_device)
    chosen_dtype = pick_dtype(dtype, chosen_device)
    updates = [parse_lora(text) for text in loras]
    with quietly():
        if name in bundled_models() and vae is None:
            pipe = _load_folder(name, find_model(name), chosen_dtype)
        else:
            source = find_source(name, vae)
            pipe = _prepared(source, chosen_device, chosen_dtype, task, offload, keep_text)
        pipe.set_progress_bar_config(disable=True)
        for path, scale in updates:
            add_lora(pipe, path, scale)
        if attention is not None:
            use_attention(pipe, attention)
        if offload:
            offload_blocks(pipe.transformer, chosen_device)
            pipe.vae.to(chosen_device)
            if pipe.text_encoder is not None:
                pipe.text_encoder.to(chosen_device)
            return pipe
        return pipe.to(chosen_device)


def _load_folder(name: str, folder: str, dtype: torch.dtype) -> CausalWanPipeline:
    """A model with its text encoder, as diffusers loads it."""
    from stillframe.pipelines.causal_wan import CausalWanPipeline

    with one_sentence(name):
        pipe: CausalWanPipeline = CausalWanPipeline.from_pretrained(folder, dtype=dtype)
    return pipe


def _prepared(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    task: Task | None,
    offload: bool,
    keep_text: bool,
) -> CausalWanPipeline:
    """Get the files, refuse what does not fit, load, and encode the prompts that are known."""
    from stillframe.loading import hub
    from stillframe.loading.assemble import Task, build, open_text, plan
    from stillframe.loading.prompts import default_cache

    task = task or Task()
    wanted = source.wanted
    if not all(file.present for file in hub.on_disk(wanted)):
        hub.fetch(wanted)
    needs = plan(source, dtype, task, device)
    if offload:
        needs = dataclasses.replace(needs, transformer=0)
    first, later = _text_devices(needs, device, known=bool(task.prompts), keep=keep_text)
    with one_sentence(source.name):
        encoder = open_text(source, dtype, first, keep=keep_text, cache=default_cache())
        if task.prompts:
            encoder(task.prompts)
        encoder.device = later
        return build(source, dtype, encoder)


def _text_devices(
    needs: MemoryPlan, device: torch.device, *, known: bool, keep: bool
) -> tuple[torch.device, torch.device]:
    """Where to encode before the rest of the model is on ``device``, and where afterwards.

    Prompts can always be encoded on the CPU, at the price of seconds.

    Raises:
        ModelError: it does not fit either way.
    """
    from stillframe.loading.device_memory import check_memory, free_memory

    if device.type == "cpu":
        check_memory(needs, device)
        return device, device
    free = free_memory(device)
    if free is None or needs.encoding + needs.editing <= free:
        return device, device
    check_memory(dataclasses.replace(needs, text_encoder=0, text_activations=0), device)
    cpu = pick_device("cpu")
    if known and not keep and needs.encoding <= free:
        return device, cpu
    check_memory(needs.text_alone(), cpu)
    return cpu, cpu


def plan_pipeline(
    name: str,
    height: int,
    width: int,
    *,
    vae: str | None = None,
    recovery: str = "aligned",
    store: str = "auto",
    dtype: str = "bfloat16",
    device: str = "auto",
) -> tuple[MemoryPlan, int | None]:
    """What editing with a model will take, and what is free.

    Fetches configurations at most, and for a recipe over a published base nothing.

    Args:
        name, vae, dtype, device: see `load_pipeline`.
        height, width: working size in pixels.
        recovery: what stands in for pruned tokens.
        store: what it stores in, see `StreamSettings`.

    Returns:
        the plan, and the bytes free on the device (None where nobody says).

    Raises:
        ModelError: there is no such model, or its configuration cannot be had.
        ValueError: a name is unknown, or the size does not fit the model's grid.
    """
    from stillframe.loading import hub
    from stillframe.loading.assemble import Task, plan
    from stillframe.loading.device_memory import free_memory

    picked = pick_device(device)
    source = find_source(name, vae)
    configs = source.configurations
    if not all(file.present for file in hub.on_disk(configs)):
        hub.fetch(configs)
    task = Task(height, width, recovery, store=store)
    needs = plan(source, pick_dtype(dtype, picked), task, picked)
    return needs, free_memory(picked)


def model_styles(name: str) -> tuple[Style, ...]:
    """The style table of a model; empty for models without one, recipes, and those on the hub.

    Raises:
        ModelError: there is no such model, or its table is damaged.
    """
    return () if name in load_recipes() else load_styles(Path(find_model(name)))
