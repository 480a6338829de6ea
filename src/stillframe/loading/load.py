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
from stillframe.loading.styles import PICTURES_FILE, Style, load_styles
from stillframe.models import bundled_models

if TYPE_CHECKING:
    import torch

    from stillframe.loading.assemble import Source, Task
    from stillframe.loading.fit import Fit
    from stillframe.loading.hub import Wanted
    from stillframe.loading.memory import MemoryPlan
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "bundled_models",
    "find_model",
    "find_source",
    "fit_pipeline",
    "load_pipeline",
    "missing_files",
    "model_styles",
    "pick_device",
    "pick_dtype",
    "plan_pipeline",
    "style_pictures",
    "working_size",
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
    # of the name, since torch takes the number of a device modulo 256
    if device.type == "cuda" and int(name.partition(":")[2] or 0) >= count:
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
    fit: Fit | float | None = None,
) -> CausalWanPipeline:
    """Load a model, ready to edit; downloads what is missing, silently: see `missing_files`.

    Args:
        name: see `find_model`.
        device: "auto", "cpu", "cuda", "cuda:1", ...; a CUDA device that has a number is this
            thread's present one from then on.
        dtype: "auto", "float32", "bfloat16" or "float16".
        vae: see `find_source`.
        loras: low-rank updates to merge, ``FILE`` or ``FILE:SCALE`` each.
        attention: one of diffusers' attention backends.
        offload: keep the transformer's weights on the CPU, and bring them layer by layer.
        keep_text: keep the text encoder in memory between prompts (bundled models always do).
        task: what memory is planned for, by default editing at 480x832; what does not fit is
            refused before weights are read. Its prompts are encoded before the rest comes to the
            device.
        fit: so many GB (10^9 bytes) that everything has to stay below, by the mildest measures that
            are enough; or what `fit_pipeline` has found for the same model, device and task.

    Raises:
        ModelError: there is no such model, or it cannot be loaded, driven or held in memory.
        ValueError: no such device, dtype, autoencoder or attention.
    """
    from stillframe.loading.adapt import (
        add_lora,
        check_attention,
        check_offload,
        parse_lora,
        save_memory,
        use_attention,
    )
    from stillframe.loading.ahead import compile_ahead
    from stillframe.loading.assemble import Source, Task
    from stillframe.loading.devices import make_current

    chosen_device = pick_device(device)
    make_current(chosen_device)
    if attention is not None:
        check_attention(attention)
    if offload:
        check_offload(chosen_device)
    chosen_dtype = pick_dtype(dtype, chosen_device)
    updates = [parse_lora(text) for text in loras]
    if isinstance(fit, int | float):
        fit = fit_pipeline(
            name, fit, device=device, dtype=dtype, vae=vae, task=task, offload=offload
        )
    task = (task or Task()) if fit is None else fit.task
    with quietly():
        if name in bundled_models() and vae is None:
            compile_ahead(Source(name, find_model(name)), chosen_dtype, task, chosen_device)
            pipe = _load_folder(name, find_model(name), chosen_dtype)
        else:
            source = find_source(name, vae)
            if offload and not task.offloaded:
                task = dataclasses.replace(task, offloaded=_layers(source))
            pipe = _prepared(source, chosen_device, chosen_dtype, task, keep_text, fit)
        pipe.set_progress_bar_config(disable=True)
        for path, scale in updates:
            add_lora(pipe, path, scale)
        if attention is not None:
            use_attention(pipe, attention)
        if offload and not task.offloaded:
            task = dataclasses.replace(task, offloaded=len(pipe.transformer.blocks))
        save_memory(pipe, task, chosen_device)
        return pipe.to(chosen_device)


def _configured(source: Source) -> Source:
    """The same, its configurations on disk."""
    from stillframe.loading import hub

    configs = source.configurations
    if not all(file.present for file in hub.on_disk(configs)):
        hub.fetch(configs)
    return source


def working_size(
    name: str,
    *,
    vae: str | None = None,
    frames: tuple[int, int] | None = None,
    height: int | None = None,
    width: int | None = None,
    generate: bool = False,
) -> tuple[int, int]:
    """Height and width in pixels that a model will work at; fetches configurations at most.

    Args:
        name, vae: see `load_pipeline`.
        frames: width and height of the video to edit; None for one of the usual size, 1920x1080.
        height, width: of the result, as they were asked for.
        generate: for text-to-video, where there is no video to edit.

    Raises:
        ModelError: there is no such model, or its configuration cannot be had.
        ValueError: a side would be too small, or there is no such autoencoder.
    """
    from stillframe.loading import assemble

    source = _configured(find_source(name, vae))
    return assemble.working_size(source, frames, height, width, generate=generate)


def _layers(source: Source) -> int:
    """Of a model's transformer; gets its configuration."""
    count: int = _configured(source).config("transformer")["num_layers"]
    return count


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
    task: Task,
    keep_text: bool,
    fit: Fit | None,
) -> CausalWanPipeline:
    """Get the files, refuse what does not fit, load, and encode the prompts that are known."""
    from stillframe.loading import hub
    from stillframe.loading.ahead import compile_ahead
    from stillframe.loading.assemble import build, open_text, plan
    from stillframe.loading.prompts import default_cache

    for _ in range(2):  # which tiny autoencoder it is, an unknown base says when it is there
        if not all(file.present for file in hub.on_disk(source.wanted)):
            hub.fetch(source.wanted)
    compile_ahead(source, dtype, task, device)
    needs = plan(source, dtype, task, device)
    known, budget = bool(task.prompts), None if fit is None else fit.budget
    first, later = _text_devices(needs, device, known=known, keep=keep_text, budget=budget)
    with one_sentence(source.name):
        encoder = open_text(source, dtype, first, keep=keep_text, cache=default_cache())
        if task.prompts:
            encoder(task.prompts)
        encoder.device = later
        return build(source, dtype, encoder)


def _text_devices(
    needs: MemoryPlan,
    device: torch.device,
    *,
    known: bool,
    keep: bool,
    budget: int | None = None,
) -> tuple[torch.device, torch.device]:
    """Where to encode before the rest of the model is on ``device``, and where afterwards.

    Prompts can always be encoded on the CPU, at the price of seconds. A budget is bytes of the
    device that may be used.

    Raises:
        ModelError: it does not fit either way.
    """
    from stillframe.loading.device_memory import check_memory, free_memory

    if device.type == "cpu":
        check_memory(needs, device)
        return device, device
    free = free_memory(device)
    if budget is not None:
        free = budget if free is None else min(free, budget)
    if free is None or needs.encoding + needs.editing <= free:
        return device, device
    check_memory(dataclasses.replace(needs, text_encoder=0, text_activations=0), device)
    cpu = pick_device("cpu")
    if known and not keep and needs.encoding <= free:
        return device, cpu
    check_memory(needs.text_alone(), cpu)
    return cpu, cpu


def fit_pipeline(
    name: str,
    gigabytes: float,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    vae: str | None = None,
    task: Task | None = None,
    offload: bool = False,
) -> Fit:
    """What has to be done so that a task stays below a size; fetches configurations at most.

    Args:
        name, dtype, vae, task, offload: see `load_pipeline`.
        gigabytes: of 10^9 bytes.
        device: see `load_pipeline`; a `torch.device` need not be there.

    Raises:
        ModelError: nothing is enough; there is no such model, or its configuration cannot be had.
        ValueError: a name is unknown, or the size does not fit the model's grid.
    """
    from stillframe.loading.assemble import Task
    from stillframe.loading.fit import GB, find_fit

    where = pick_device(device) if isinstance(device, str) else device
    source, task = find_source(name, vae), task or Task()
    layers = _layers(source)
    if offload and not task.offloaded:
        task = dataclasses.replace(task, offloaded=layers)
    return find_fit(source, pick_dtype(dtype, where), task, where, int(gigabytes * GB))


def plan_pipeline(
    name: str,
    height: int,
    width: int,
    *,
    vae: str | None = None,
    recovery: str = "aligned",
    store: str = "auto",
    cache: str = "auto",
    offload: bool = False,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> tuple[MemoryPlan, int | None]:
    """What editing with a model will take, and what is free.

    Fetches configurations at most, and for a recipe over a published base nothing.

    Args:
        name, vae, dtype, device, offload: see `load_pipeline`.
        height, width: working size in pixels.
        recovery: what stands in for pruned tokens.
        store, cache: see `StreamSettings`.

    Returns:
        the plan, and the bytes free on the device (None where nobody says).

    Raises:
        ModelError: there is no such model, or its configuration cannot be had.
        ValueError: a name is unknown, or the size does not fit the model's grid.
    """
    from stillframe.loading.assemble import Task, plan
    from stillframe.loading.device_memory import free_memory

    picked = pick_device(device)
    source = find_source(name, vae)
    layers = _layers(source)
    task = Task(height, width, recovery, store=store, cache=cache)
    task = dataclasses.replace(task, offloaded=layers if offload else 0)
    needs = plan(source, pick_dtype(dtype, picked), task, picked)
    return needs, free_memory(picked)


def model_styles(name: str) -> tuple[Style, ...]:
    """The style table of a model; empty for models without one, recipes, and those on the hub.

    Raises:
        ModelError: there is no such model, or its table is damaged.
    """
    return () if name in load_recipes() else load_styles(Path(find_model(name)))


def style_pictures(name: str) -> Path | None:
    """The file with pictures of a model's styles, see ``styles.PICTURES_FILE``; None without one.

    Raises:
        ModelError: there is no such model.
    """
    path = None if name in load_recipes() else Path(find_model(name)) / PICTURES_FILE
    return path if path is not None and path.is_file() else None
