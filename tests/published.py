"""Small checkpoints in the layouts that the authors of causal Wan models publish.

A base folder in diffusers' format, weights by the original code's names under the keys and prefixes
of each publication, and a recipe file that says so. Names are mapped here by a table of our own,
so that the loading code is compared with a second derivation.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from safetensors.torch import save_file
from tests import tiny
from torch import Tensor

from stillframe.loading.recipes import Recipe, load_recipes

__all__ = ["base_folder", "model_of", "original_names", "publish", "recipe_toml", "taehv_file"]

# diffusers' name of a part -> the original code's; ordered, first match wins
_PARTS = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("patch_embedding.", "patch_embedding."),
    ("proj_out.", "head.head."),
)
_IN_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "scale_shift_table": "modulation",
}


def _original(name: str) -> str:
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in _PARTS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    assert name.startswith("blocks."), name
    _, number, rest = name.split(".", 2)
    for ours, theirs in _IN_BLOCK.items():
        rest = ".".join((f".{rest}.").replace(f".{ours}.", f".{theirs}.").strip(".").split("."))
    return f"blocks.{number}.{rest}"


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's tensors by the names of the original Wan code."""
    return {_original(name): value.clone() for name, value in state.items()}


def base_folder(folder: Path, **other: Any) -> Path:
    """A folder in the format of ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, tiny; ``other``: parts."""
    parts = {**tiny.parts(wan=True), **other}
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return folder


def model_of(seed: int, channels: int = tiny.CHANNELS) -> Any:
    """A tiny transformer whose weights depend on ``seed``."""
    model = tiny.transformer(channels=channels)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def publish(
    folder: Path,
    recipe: Recipe,
    base: Path,
    *,
    prefix: str = "model.",
    seed: int = 1,
    channels: int = tiny.CHANNELS,
    flat: bool = False,
) -> tuple[Any, Path]:
    """Write weights as ``recipe`` says, and a recipe file that finds them.

    Args:
        folder: where to write.
        recipe: the publication; its layout is kept, and places become local.
        base: from `base_folder`.
        prefix: put before every tensor's name.
        seed: of the weights.
        channels: C of its latents.
        flat: whether the file holds the network's tensors and nothing else.

    Returns:
        the model that the weights are of (low-rank update merged), and the recipe file.
    """
    model = model_of(seed, channels)
    state = original_names(model.state_dict())
    files = folder / "weights"
    if recipe.lora is not None:
        _publish_lora(files / recipe.lora, state, model, recipe.lora_scale)
    named = {prefix + name: value for name, value in state.items()}
    path = files / recipe.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(named, path)
    elif flat:
        torch.save(named, path)
    else:
        other = {name: torch.randn_like(value) for name, value in named.items()}
        # every key but the first one that counts holds another network
        keys = [key for key in reversed(recipe.keys) if key]
        content: dict[str, Any] = dict.fromkeys(("critic", *keys), other)
        content = {**content, recipe.keys[0]: named} if recipe.keys else dict(named)
        torch.save(content, path)
    table = folder / "recipes.toml"
    table.write_text(recipe_toml(recipe, files, base), encoding="utf-8")
    return model, table


def _publish_lora(path: Path, state: dict[str, Tensor], model: Any, scale: float) -> None:
    """A rank-2 update of every linear layer of the blocks, taken off ``state`` beforehand."""
    generator = torch.Generator().manual_seed(9)
    lora = {}
    for name, value in list(state.items()):
        if not (name.startswith("blocks.") and value.ndim == 2):
            continue
        down = 0.1 * torch.randn(2, value.shape[1], generator=generator)
        up = 0.1 * torch.randn(value.shape[0], 2, generator=generator)
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"] = down, up
        state[name] = value - scale * up @ down
    assert lora
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"generator_lora": lora, "critic_lora": {}, "step": 7}, path)


def recipe_toml(recipe: Recipe, files: Path, base: Path) -> str:
    """A recipe's table, its weights and its base in these folders."""
    given = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    given |= {"repo": str(files), "base": str(base)}
    for left_out in ("name", "folder"):
        del given[left_out]
    # TOML's strings, numbers, lists and truth values are written as JSON's are
    told = {key: value for key, value in given.items() if value is not None}
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
    return "\n".join([f"[{recipe.name}]", *lines, ""])


def taehv_file(path: Path, *, more_rows: bool = False) -> Any:
    """Weights of a small TAEHV for `tiny.CHANNELS` latents; returns the autoencoder they are of."""
    vae = tiny.autoencoder(trim=3)
    vae.register_to_config(latents_mean=None, latents_std=None)
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    if more_rows:
        key = "decoder.7.conv.weight"
        state[key] = torch.cat([torch.randn_like(state[key]), state[key]])
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return vae


def every_recipe() -> list[str]:
    """Names of the built-in recipes."""
    return list(load_recipes())
