"""A model from its parts: where each lies on disk, what it will take, and putting them together.

A *source* is a model by any of its names: a recipe (published weights over a base in diffusers'
format) or a folder in diffusers' format, local or in the hub's cache. The text encoder is never
loaded with the rest: prompts go through a `PromptEncoder`, which has it while it needs it.

This file downloads nothing, and does not know devices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn

from stillframe import hub
from stillframe.autoencoder import TinyVideoAutoencoder
from stillframe.checkpoint import load_transformer
from stillframe.engine import StreamSettings
from stillframe.errors import ModelError
from stillframe.memory import MemoryPlan, plan_memory
from stillframe.pipeline import CausalWanPipeline
from stillframe.prompts import PromptEncoder
from stillframe.recipes import Recipe
from stillframe.schedule import edit_sigmas
from stillframe.taehv import TAEW_CONFIG, load_taehv

__all__ = ["Source", "build", "plan"]

_SELF_FORCING_POSITIONS = 21
_PARTS = ("transformer", "text_encoder", "vae")
# of a folder's index, what memory depends on
_SIZES = ("block_frames", "sink_frames", "window_frames", "position_limit")
_NUMBERS = (*_SIZES, "num_inference_steps", "edit_sigmas")


@dataclass(frozen=True)
class Source:
    """Where a model's parts come from.

    Attributes:
        name: what the user calls it.
        base: folder or hub id in diffusers' format; with a recipe, its transformer is not used.
        recipe: None where ``base`` is the whole model.
        vae: "tiny" (``taew2_1``), "full" (the base's), or a weight file of the tiny autoencoder.
    """

    name: str
    base: str
    recipe: Recipe | None = None
    vae: str = "full"

    @property
    def wanted(self) -> tuple[hub.Wanted, ...]:
        """Files that must be on disk."""
        tiny = hub.Wanted(hub.TINY_VAE_REPO, (hub.TINY_VAE_FILE,))
        if self.recipe is not None:
            files = hub.wanted_by(self.recipe, "full" if self.vae == "full" else "tiny")
        else:
            files = (*hub.wanted_folder(self.base), tiny)
        return files if self.vae == "tiny" else tuple(entry for entry in files if entry != tiny)

    @property
    def configurations(self) -> tuple[hub.Wanted, ...]:
        """The files among them that say what kind of model it is; kilobytes."""
        parts = ("transformer", "text_encoder") if self.vae != "full" else _PARTS
        names = ("model_index.json", *(f"{part}/config.json" for part in parts))
        return (hub.Wanted(self.base, names),)

    def folder(self) -> Path:
        """The base on disk.

        Raises:
            ModelError: it is not there.
        """
        return hub.require(self.base, "model_index.json", self.name).parent

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of one of the base's parts.

        Raises:
            ModelError: it is not there, or is not JSON.
        """
        return self._json(f"{part}/config.json")

    def index(self) -> dict[str, Any]:
        """The base's ``model_index.json``.

        Raises:
            ModelError: see `config`.
        """
        return self._json("model_index.json")

    def _json(self, file: str) -> dict[str, Any]:
        path = hub.require(self.base, file, self.name)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.name} has a broken {file}: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"{self.name} has a broken {file}: it holds no fields")
        return found


def _vae_config(source: Source) -> tuple[Mapping[str, Any], str]:
    if source.vae != "full":
        return TAEW_CONFIG, "tiny"
    config = source.config("vae")
    kind = "tiny" if config.get("_class_name") == "TinyVideoAutoencoder" else "full"
    return config, kind


def _numbers(source: Source) -> dict[str, Any]:
    """The pipeline's configuration: a recipe's, or what the folder says beyond its parts."""
    recipe = source.recipe
    if recipe is None:
        index = source.index()
        return {name: value for name, value in index.items() if name in _NUMBERS}
    seen = max(recipe.edit_sink + recipe.edit_window, recipe.sink + recipe.window)
    return {
        "block_frames": recipe.block,
        "sink_frames": recipe.edit_sink,
        "window_frames": recipe.edit_window,
        "position_limit": max(_SELF_FORCING_POSITIONS, seen),
        "edit_sigmas": recipe.edit_sigmas,
        "generate_sigmas": recipe.generate_sigmas,
        "generate_window_frames": recipe.window,
        "generate_sink_frames": recipe.sink,
    }


def build(
    source: Source,
    dtype: torch.dtype,
    *,
    text_device: torch.device | str = "cpu",
    keep_text: bool = False,
    prompt_cache: Path | None = None,
) -> CausalWanPipeline:
    """Load everything but the text encoder, on the CPU.

    Args:
        source: with all its files on disk.
        dtype: of transformer and autoencoder.
        text_device: where prompts will be encoded.
        keep_text: hold on to the text encoder between prompts.
        prompt_cache: folder for embeddings; None keeps none.

    Raises:
        ModelError: a part is missing, damaged, or not of the model it should be.
    """
    folder, recipe = source.folder(), source.recipe
    vae = _autoencoder(source, folder, dtype)
    if recipe is None:
        pipe = CausalWanPipeline.from_pretrained(
            folder, vae=vae, text_encoder=None, tokenizer=None, dtype=dtype
        )
    else:
        repo = recipe.place(recipe.repo)
        lora = None if recipe.lora is None else hub.require(repo, recipe.lora, source.name)
        weights = hub.require(repo, recipe.file, source.name)
        config = source.config("transformer")
        transformer = load_transformer(config, weights, recipe.keys, dtype, lora, recipe.lora_scale)
        pipe = CausalWanPipeline(
            tokenizer=None,
            text_encoder=None,
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=recipe.shift),
            **_numbers(source),
        )
    pipe.prompt_encoder = PromptEncoder(
        folder,
        pipe.config.text_length,
        torch.bfloat16 if dtype == torch.float16 else dtype,
        text_device,
        keep_text,
        cache=prompt_cache,
        identity=source.base,
    )
    return pipe


def _autoencoder(source: Source, folder: Path, dtype: torch.dtype) -> nn.Module:
    if source.vae == "tiny":
        path = hub.require(hub.TINY_VAE_REPO, hub.TINY_VAE_FILE, f"{source.name} --vae tiny")
        return load_taehv(path, dtype)
    if source.vae != "full":
        return load_taehv(Path(source.vae).expanduser(), dtype)
    _, kind = _vae_config(source)
    family = TinyVideoAutoencoder if kind == "tiny" else AutoencoderKLWan
    try:
        vae: nn.Module = family.from_pretrained(folder / "vae", torch_dtype=dtype)
    except Exception as error:  # a damaged folder fails in every way there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the autoencoder of {source.name} cannot be loaded: {reason}") from error
    return vae


def plan(
    source: Source, dtype: torch.dtype, height: int, width: int, recovery: str = "aligned"
) -> MemoryPlan:
    """What editing at a size will take, from the configurations alone.

    Raises:
        ModelError: a configuration is not on disk, or not one of this kind of model.
        ValueError: a size does not fit the grid.
    """
    vae_config, kind = _vae_config(source)
    return plan_memory(
        source.config("transformer"),
        vae_config,
        kind,
        source.config("text_encoder"),
        height=height,
        width=width,
        dtype=dtype,
        settings=_settings(_numbers(source)),
        recovery=recovery,
    )


def _settings(numbers: Mapping[str, Any]) -> StreamSettings:
    """How a pipeline of this configuration edits, as far as memory depends on it."""
    steps = numbers.get("num_inference_steps", 3)
    return StreamSettings(
        sigmas=tuple(numbers.get("edit_sigmas") or edit_sigmas(1.0, steps, 1.0)),
        **{name: numbers[name] for name in _SIZES if name in numbers},
    )
